"""The way of batches to the GPU: two pinned buffers, filled in turns.

While the GPU runs one batch, the next one is written and its copy queued behind it; the one after that
waits until the first copy is through. A buffer grows by doubling, so batches of all sizes soon find it
large enough. On a CPU a buffer is plain memory and its copy is through at once.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Protocol

import torch

from serve_app.engines.packed.layout import Row

SLOTS = 2
SMALLEST = 4096  # numbers


class Event(Protocol):
    """A point in the GPU's work, as `torch.cuda.Event`."""

    def record(self) -> None:
        """It is after all that was queued so far."""
        ...

    def synchronize(self) -> None:
        """Wait until the GPU gets there."""
        ...


class NoEvent:
    """On a CPU everything is done when the call returns."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class Slot:
    """One buffer here and its twin on the device."""

    def __init__(self, device: torch.device, *, event: Event) -> None:
        self._device = device
        self._event = event
        self._host = self._twin = torch.empty(0, dtype=torch.int32)

    def row(self, numbers: int) -> Row:
        """Room for a batch's row; waits until the last one's copy is through."""
        self._event.synchronize()
        if len(self._host) < numbers:
            capacity = max(SMALLEST, 1 << (numbers - 1).bit_length())
            pinned = self._device.type == "cuda"
            self._host = torch.empty(capacity, dtype=torch.int32, pin_memory=pinned)
            self._twin = torch.empty(capacity, dtype=torch.int32, device=self._device)
        row: Row = self._host[:numbers].numpy()
        return row

    def send(self, numbers: int, *, into: torch.Tensor | None = None) -> torch.Tensor:
        """Queue the copy of the row to the device, and return it there: in `into`, or in the twin."""
        target = self._twin[:numbers] if into is None else into
        target.copy_(self._host[:numbers], non_blocking=True)
        self._event.record()
        return target


class Slots:
    """Slots in turn."""

    def __init__(self, device: torch.device, *, make_event: Callable[[], Event]) -> None:
        self._turns = cycle([Slot(device, event=make_event()) for _ in range(SLOTS)])

    def next(self) -> Slot:
        return next(self._turns)


def event_maker(device: torch.device) -> Callable[[], Event]:
    """Events for a device's work."""
    return torch.cuda.Event if device.type == "cuda" else NoEvent
