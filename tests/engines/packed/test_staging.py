"""The two buffers: used in turn, reused, grown, and never written while a copy is under way."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from serve_app.engines.packed.staging import SLOTS, SMALLEST, Slot, Slots  # noqa: E402 - needs torch

pytestmark = pytest.mark.model
CPU = torch.device("cpu")


@dataclass
class Recorded:
    """An event that keeps what was asked of it."""

    calls: list[str] = field(default_factory=list)

    def record(self) -> None:
        self.calls.append("record")

    def synchronize(self) -> None:
        self.calls.append("synchronize")


def test_what_was_written_arrives() -> None:
    """A row comes out on the device as it was written, in the slot's own place or in one that was given."""
    slot = Slot(CPU, event=Recorded())
    slot.row(3)[:] = (1, 2, 3)
    assert slot.send(3).tolist() == [1, 2, 3]
    place = torch.zeros(3, dtype=torch.int32)
    assert slot.send(3, into=place) is place
    assert place.tolist() == [1, 2, 3]


def test_a_buffer_is_reused_and_grows_by_doubling() -> None:
    """Rows up to its size share one buffer; a longer one gets at least twice as much."""
    slot = Slot(CPU, event=Recorded())
    small, again = slot.row(10), slot.row(SMALLEST)
    assert small.ctypes.data == again.ctypes.data
    slot.row(SMALLEST + 1)
    large, largest = slot.row(1), slot.row(2 * SMALLEST)
    assert large.ctypes.data == largest.ctypes.data != small.ctypes.data


def test_a_buffer_waits_for_its_last_copy_before_it_is_written() -> None:
    """Each copy is recorded, and the next row is given out only after that point was waited for."""
    event = Recorded()
    slot = Slot(CPU, event=event)
    for _ in range(2):
        slot.row(4)
        slot.send(4)
    assert event.calls == ["synchronize", "record"] * 2


def test_slots_take_turns() -> None:
    """Neighbouring batches have different buffers, and the one after them has the first again."""
    events: list[Recorded] = []

    def make_event() -> Recorded:
        events.append(Recorded())
        return events[-1]

    slots = Slots(CPU, make_event=make_event)
    taken = [slots.next() for _ in range(2 * SLOTS)]
    assert len(events) == len(set(map(id, taken))) == SLOTS
    assert taken[:SLOTS] == taken[SLOTS:]
