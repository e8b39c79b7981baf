"""The packed engine: batches within a token limit go to the device back to back, vectors come back once.

`start` queues a call's work and returns; `Pending.vectors` waits for it. Between the two a GPU computes
while the CPU writes the next row, and one more call may be started.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from serve_app.engines.base import TokenIds, Vectors
from serve_app.engines.packed.graphs import Capturing, Graphs, capture_all
from serve_app.engines.packed.layout import Room, fill, split
from serve_app.engines.packed.pooling import PackedEmbedder
from serve_app.engines.packed.staging import Event, Slots, event_maker

NO_LIMIT = 1 << 40  # tokens

Compile = Callable[[PackedEmbedder], Callable[..., torch.Tensor]]


def compiled(embedder: PackedEmbedder) -> Callable[..., torch.Tensor]:
    """Each layer fused by PyTorch's compiler, for any number of tokens; all layers are compiled as one."""
    for layer in embedder.encoder.layers:
        layer.compile(dynamic=True)
    return embedder


@dataclass(frozen=True, slots=True)
class Pending:
    """Vectors on their way back."""

    _host: torch.Tensor
    _event: Event

    def vectors(self) -> Vectors:
        """Wait for them: float32 [texts, dims]."""
        self._event.synchronize()
        return np.asarray(self._host.numpy())


class PackedEngine:
    """Runs a `PackedEmbedder`. Use from one thread at a time."""

    def __init__(
        self,
        embedder: PackedEmbedder,
        *,
        device: torch.device,
        max_tokens: int,
        compile: Compile | None = None,  # noqa: A002 - PyTorch's word for it
    ) -> None:
        """Move the embedder to its device.

        Args:
            embedder: its attention chosen for the device.
            device: where to run.
            max_tokens: of one text.
            compile: makes of the embedder a function that does the same, faster.
        """
        self.most_tokens = NO_LIMIT  # of one batch; larger calls are cut
        self._device = device
        self._embedder = embedder.eval().to(device)
        self._first_position = embedder.encoder.first_position
        self._make_event = event_maker(device)
        self._slots = Slots(device, make_event=self._make_event)
        self._max_tokens = max_tokens
        self._forward = compile(self._embedder) if compile else None
        self._graphs = Graphs()

    @torch.inference_mode()
    def capture(self, how: Capturing) -> None:
        """Run small batches as graphs from now on; see `capture_all`."""
        self._graphs = capture_all(
            self._run,
            device=self._device,
            how=how,
            max_tokens=self._max_tokens,
            first_position=self._first_position,
        )

    @property
    def graphs(self) -> list[Room]:
        """The captured buckets."""
        return self._graphs.rooms

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        return self.start(texts).vectors()

    @torch.inference_mode()
    def start(self, texts: Sequence[TokenIds]) -> Pending:
        """Queue a call's work. The next call may be started before its vectors are fetched."""
        found = [self._queue(texts[part]) for part in split([*map(len, texts)], self.most_tokens)]
        vectors = found[0] if len(found) == 1 else torch.cat(found)
        event = self._make_event()
        if self._device.type == "cuda":
            host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
            host.copy_(vectors, non_blocking=True)
            vectors = host
        event.record()
        return Pending(vectors, event)

    def _queue(self, texts: Sequence[TokenIds]) -> torch.Tensor:
        """One batch: its row to the device, and its run."""
        exact, slot = Room.of(texts), self._slots.next()
        graph = self._graphs.find(exact)
        room = exact if graph is None else graph.room
        fill(slot.row(room.numbers), texts, room, first_position=self._first_position)
        if graph is None:
            return self._run(slot.send(room.numbers), room, max(map(len, texts)))
        slot.send(room.numbers, into=graph.row)
        return graph.replay()[: len(texts)].clone()  # the next replay writes over it

    def _run(self, row: torch.Tensor, room: Room, longest: int) -> torch.Tensor:
        parts = (row[part] for part in room.parts)
        if self._forward is not None:
            # It only bounds the kernels' grid: rounded up, there are few values to compile for.
            return self._forward(*parts, 1 << (longest - 1).bit_length())
        vectors: torch.Tensor = self._embedder(*parts, longest)
        return vectors
