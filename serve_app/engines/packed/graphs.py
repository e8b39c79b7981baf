"""CUDA graphs for batches whose kernels take longer to start than to run.

A graph's shapes are fixed, so it is captured for some buckets of tokens and texts, and a batch runs in
the smallest that holds it. Up to which size that gains anything depends on card, model and host, and is
measured: a plain run takes as long as its kernels take to start, and a bucket stays while it takes about
that long when it is full.
What capturing means is a seam: on a CPU, tests run the same logic over work that is simply done again.
A bucket whose graph fails, or differs from the plain run, is left out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from serve_app.engines.packed.layout import Room, fill

log = logging.getLogger(__name__)

FINE, COARSE = (16, 32, 64, 128, 256, 512, 1024), (2048, 4096, 8192, 16_384, 32_768)
SIZES = (*FINE, *sorted((*COARSE, *(3 * size // 4 for size in COARSE))))  # tokens
LONG, SHORT = 64, 8  # tokens a text, where a bucket is full in both
# One text; few texts, or long ones; many short ones. Room for a text that is not there costs a little.
FAMILIES = (
    tuple(Room(size, 1) for size in FINE[:-1]),
    tuple(Room(size, max(8, size // LONG)) for size in SIZES if size >= LONG),
    tuple(Room(size, size // SHORT) for size in SIZES if size > LONG),
)
TIMED_RUNS = 3
# A full bucket may take so much longer than the plain run of one token: those that fall into it are
# seven eighths full on average, and on a server's busy host kernels take longer to start than here.
GAINS = 4 / 3
GRAPH_ERROR = 1e-3  # of a unit vector's component: the same kernels may sum in another order
WARM_UPS = 3

# Runs a batch: its row on the device, its room, and the tokens that no text exceeds → [texts, dims].
Run = Callable[[torch.Tensor, Room, int], torch.Tensor]
Replay = Callable[[], torch.Tensor]
# Makes of work that reads one buffer and writes another the same work, quicker to start.
Capture = Callable[[Replay], Replay]
# How long one run takes.
Seconds = Callable[[Replay], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capturing:
    """How graphs are made and judged."""

    capture: Capture
    seconds: Seconds | None = None  # None: every bucket stays, whatever it gains
    families: Sequence[Sequence[Room]] = FAMILIES  # rooms, smallest first in each


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
    how: Capturing,
    max_tokens: int,
    first_position: int = 0,
) -> Graphs:
    """Capture each bucket, no larger than legal texts can fill it, and try it.

    Args:
        run: the plain run.
        device: where rows lie.
        how: a family ends before the first bucket that gains nothing (`GAINS`).
        max_tokens: of one text.
        first_position: of a text's first token.
    """
    seconds = how.seconds
    longest_s = GAINS * seconds(_single_token(run, device, first_position)) if seconds else 0.0
    captured = []
    for family in how.families:
        for room in sorted({Room(min(b.tokens, max_tokens * b.texts), b.texts) for b in family}):
            try:
                found = _captured(run, room, device, how.capture, min(room.tokens, max_tokens))
                error = _error(found, run, max_tokens, first_position)
            except RuntimeError as reason:
                first_line = (str(reason).strip() or repr(reason)).splitlines()[0]
                log.warning("no CUDA graphs: %s", first_line)
                return Graphs()
            if error > GRAPH_ERROR:
                log.warning("no CUDA graph for %s: it differs by %.1e", room, error)
                continue
            if seconds and seconds(found.replay) > longest_s:
                break
            captured.append(found)
    return Graphs(captured)


def cuda_graphs() -> Capturing:
    """For one engine, up to the size that pays."""
    return Capturing(capture=CudaCapture(), seconds=cuda_seconds)


class CudaCapture:
    """CUDA graphs of one engine's work; buffers that it reads and writes stay where they are.

    The graphs share the memory of what lies between: never run two at a time.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, work: Replay) -> Replay:
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            vectors = work()
        self._pool = self._pool or graph.pool()

        def replay() -> torch.Tensor:
            graph.replay()
            return vectors

        return replay


def cuda_seconds(work: Replay) -> float:
    """Of the fastest of some runs, with the device idle before and after each."""
    return min(_timed_s(work) for _ in range(TIMED_RUNS))


def _timed_s(work: Replay) -> float:
    torch.cuda.synchronize()
    started_s = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started_s


def _single_token(run: Run, device: torch.device, first_position: int) -> Replay:
    room = Room(1, 1)
    row = torch.empty(room.numbers, dtype=torch.int32, device=device)
    _write(row, [np.ones(1, dtype=np.int32)], room, first_position=first_position)
    return lambda: run(row, room, 1)


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
