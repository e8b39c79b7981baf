"""Captured runs of fixed sizes: which batch goes into which, and what is not captured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from serve_app.engines.base import TokenIds  # noqa: E402 - they need what is skipped for
from serve_app.engines.packed.graphs import Capturing, Graphs, capture_all  # noqa: E402
from serve_app.engines.packed.layout import Room  # noqa: E402
from tests.engines.packed.twins import CPU, packed_engine, padded_engine, tiny_facts  # noqa: E402

pytestmark = pytest.mark.model


def captured_rooms(run: Any, capture: Any, *families: list[Room], seconds: Any = None) -> Graphs:
    """Graphs of families of rooms, none of whose texts has more than 64 tokens."""
    how = Capturing(capture=capture, seconds=seconds, families=families)
    return capture_all(run, device=CPU, how=how, max_tokens=64)


def test_small_batches_replay_a_captured_bucket(
    make_model: Any, make_facts: Any, mixed_texts: list[TokenIds]
) -> None:
    """With capturing, batches that a bucket holds run in it, larger ones do not, and vectors stay."""
    replays = []

    def capture(work: Any) -> Any:
        static = work()

        def replay() -> Any:
            replays.append(static.shape[0])
            static.copy_(work())
            return static

        return replay

    packed = packed_engine(make_model(), tiny_facts(make_facts), capture=capture)
    replays.clear()
    expected = padded_engine(make_model()).embed(mixed_texts)
    np.testing.assert_allclose(packed.embed(mixed_texts), expected, atol=2e-6)
    assert replays == [8]
    alone = np.concatenate([packed.embed([text]) for text in mixed_texts])
    np.testing.assert_allclose(alone, expected, atol=2e-6)
    assert replays == [8, *[1] * len(mixed_texts)]
    packed.embed(mixed_texts * 2)  # more texts than any room has
    assert len(replays) == 1 + len(mixed_texts)
    packed.most_tokens = 50
    np.testing.assert_allclose(packed.embed(mixed_texts), expected, atol=2e-6)


def test_a_graph_that_goes_wrong_is_not_used() -> None:
    """A bucket whose replay differs from the plain run is left out; one that cannot be captured ends it."""
    rooms = [Room(16, 1), Room(32, 1)]

    def run(row: Any, room: Room, longest: int) -> Any:
        del longest
        offsets = row[room.parts[3]].float()
        return torch.stack([offsets.diff()] * 3, dim=1)

    def capture(work: Any) -> Any:
        wrong = len(work()) and 0.5
        captured.append(work)
        return lambda: work() + (wrong if len(captured) == 1 else 0.0)

    captured: list[Any] = []
    graphs = captured_rooms(run, capture, rooms[1:])
    assert graphs.rooms == []
    assert captured_rooms(run, lambda w: w, rooms).rooms == rooms

    def refuse(_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    assert captured_rooms(run, refuse, rooms).rooms == []


@pytest.mark.parametrize(
    ("tokens", "texts", "bucket"),
    [
        (1, 1, Room(16, 1)),
        (16, 1, Room(16, 1)),
        (17, 1, Room(32, 1)),
        (17, 2, Room(64, 8)),
        (64, 8, Room(64, 8)),
        (65, 1, None),
        (9, 9, None),
    ],
)
def test_a_batch_runs_in_the_smallest_bucket_that_holds_it(
    tokens: int, texts: int, bucket: Room | None
) -> None:
    """Tokens and texts must both fit; beyond the largest there is none."""
    rooms = [Room(64, 8), Room(16, 1), Room(32, 1)]

    def run(row: Any, room: Room, longest: int) -> Any:
        del row, longest
        return torch.zeros(room.texts, 2)

    graphs = captured_rooms(run, lambda w: w, rooms)
    found = graphs.find(Room(tokens, texts))
    assert (found and found.room) == bucket
    assert Graphs().find(Room(1, 1)) is None


def test_a_bucket_that_gains_nothing_ends_its_family() -> None:
    """Full, a bucket may take no longer than a single token without it; then larger ones are not tried."""
    few, many = [Room(8, 1), Room(16, 1), Room(32, 1), Room(64, 1)], [Room(16, 2), Room(32, 4)]
    ran: list[Room] = []

    def run(row: Any, room: Room, longest: int) -> Any:
        del row, longest
        ran.append(room)
        return torch.zeros(room.texts, 2)

    def seconds(work: Any) -> float:
        """A single token takes as long to start as 16 do to run in a graph."""
        work()
        return max(float(ran[-1].tokens), 16.0)

    graphs = captured_rooms(run, lambda w: w, few, many, seconds=seconds)
    assert graphs.rooms == [Room(8, 1), Room(16, 1), Room(16, 2)]
    assert Room(64, 1) not in ran
    assert Room(64, 1) in captured_rooms(run, lambda w: w, few, many).rooms
