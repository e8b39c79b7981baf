"""CUDA graphs for small batches, where starting kernels takes longer than running them.

A graph's shapes are fixed, so it is captured for some buckets of tokens and texts, and a batch runs in
the smallest that holds it. What capturing means is a seam: on a CPU, tests run the same logic over work
that is simply done again. A bucket whose graph fails, or differs from the plain run, is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from serve_app.engines.packed.layout import Room, fill

log = logging.getLogger(__name__)

BUCKETS = (
    *(Room(tokens, 1) for tokens in (16, 32, 64, 128, 256, 512)),
    *(Room(tokens, 8) for tokens in (64, 128, 256, 512, 1024)),
)
GRAPH_ERROR = 1e-3  # of a unit vector's component: the same kernels may sum in another order
WARM_UPS = 3

# Runs a batch: its row on the device, its room, and the tokens that no text exceeds → [texts, dims].
Run = Callable[[torch.Tensor, Room, int], torch.Tensor]
Replay = Callable[[], torch.Tensor]
# Makes of work that reads one buffer and writes another the same work, quicker to start.
Capture = Callable[[Replay], Replay]


@dataclass(frozen=True, slots=True)
class Captured:
    """The graph of one bucket: rows go into `row`, `replay` gives the vectors, [room.texts, dims]."""

    room: Room
    row: torch.Tensor
    replay: Replay


class Graphs:
    """The captured buckets, smallest first."""

    def __init__(self, captured: Sequence[Captured] = ()) -> None:
        self._captured = sorted(captured, key=lambda c: c.room)

    @property
    def rooms(self) -> list[Room]:
        return [captured.room for captured in self._captured]

    def find(self, room: Room) -> Captured | None:
        """The smallest bucket that holds a batch."""
        return next((c for c in self._captured if c.room.holds(room)), None)


def capture_all(
    run: Run,
    *,
    device: torch.device,
    capture: Capture,
    max_tokens: int,
    first_position: int = 0,
    buckets: Sequence[Room] = BUCKETS,
) -> Graphs:
    """Capture each bucket, no larger than legal texts can fill it, and try it.

    Args:
        run: the plain run.
        device: where rows lie.
        capture: see `Capture`.
        max_tokens: of one text.
        first_position: of a text's first token.
        buckets: the rooms.
    """
    captured = []
    for room in sorted({Room(min(b.tokens, max_tokens * b.texts), b.texts) for b in buckets}):
        try:
            found = _captured(run, room, device, capture, min(room.tokens, max_tokens))
            error = _error(found, run, max_tokens, first_position)
        except RuntimeError as reason:
            log.warning("no CUDA graphs: %s", (str(reason).strip() or repr(reason)).splitlines()[0])
            return Graphs()
        if error <= GRAPH_ERROR:
            captured.append(found)
        else:
            log.warning("no CUDA graph for %s: it differs by %.1e", room, error)
    return Graphs(captured)


def cuda_capture(work: Replay) -> Replay:
    """A CUDA graph of the work; buffers that it reads and writes stay where they are."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        vectors = work()

    def replay() -> torch.Tensor:
        graph.replay()
        return vectors

    return replay


def _captured(
    run: Run, room: Room, device: torch.device, capture: Capture, longest: int
) -> Captured:
    row = torch.zeros(room.numbers, dtype=torch.int32, device=device)
    _write(row, _texts(room, longest), room, first_position=0)
    return Captured(room, row, capture(lambda: run(row, room, longest)))


def _error(graph: Captured, run: Run, max_tokens: int, first_position: int) -> float:
    """Largest difference from the plain run, over a batch that fills the bucket and one that does not."""
    largest = 0.0
    for share in (1.0, 0.6):
        texts = _texts(graph.room, max_tokens, share=share)
        _write(graph.row, texts, graph.room, first_position=first_position)
        found = graph.replay()[: len(texts)].clone()
        exact = Room.of(texts)
        row = torch.empty(exact.numbers, dtype=torch.int32, device=graph.row.device)
        _write(row, texts, exact, first_position=first_position)
        plain = run(row, exact, max(map(len, texts)))
        apart = (found - plain).abs().max()
        largest = max(largest, float(apart)) if torch.isfinite(apart) else float("inf")
    return largest


def _texts(room: Room, max_tokens: int, *, share: float = 1.0) -> list[np.ndarray]:
    """Texts that fill a share of a room: as many as it takes, of like length."""
    tokens = max(1, int(room.tokens * share))
    count = max(1, min(int(room.texts * share), tokens))
    lengths = [len(part) for part in np.array_split(np.arange(tokens), count)]
    return [np.arange(1, min(n, max_tokens) + 1, dtype=np.int32) for n in lengths]


def _write(
    target: torch.Tensor, texts: Sequence[np.ndarray], room: Room, *, first_position: int
) -> None:
    row = np.empty(room.numbers, dtype=np.int32)
    fill(row, texts, room, first_position=first_position)
    target.copy_(torch.from_numpy(row))
