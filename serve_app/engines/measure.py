"""What an engine costs on this machine: `base + per_token * padded tokens`, its spread, its best batch.

The converters measure all engines at length and side by side; a replica whose hardware no profile
fits measures its own for a few seconds. Both fit here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serve_app.engines.base import Device, Engine
from serve_app.engines.cpu import this_cpu
from serve_app.manifest import GridCell, Profile

QUICK_BUDGET_S = 3.0
QUICK_ROUNDS = 7
# Lengths as texts have them, not multiples of a register, which some engines are fastest at.
QUICK_CELLS = ((1, 8), (1, 24), (1, 72), (1, 136), (1, 256), (8, 72), (16, 72))
# A GPU is as good as idle under a CPU's batches: these reach those that fill it.
GPU_CELLS = (
    *QUICK_CELLS[:5],
    *((count, 72) for count in (8, 16, 32, 64, 128, 256, 512)),
    (256, 256),
)
RUNS_OF_A_NEW_SHAPE = 3  # the first allocates and compiles: it is taken for two
LEAST_CELLS = 2  # a line needs two points
BATCH_TOKENS = tuple(1 << n for n in range(6, 17))  # only a GPU is measured on more than 1024
AS_GOOD_AS_BEST = 1.03
UNKNOWN_GPU = "a GPU that PyTorch does not know"

Cell = tuple[int, int]  # texts, tokens each
Times = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How an engine runs, and what it took to have it ready: the part of a profile not fitted."""

    hardware: str
    device: Device
    threads: int
    load_ms: float
    resident_bytes: int

    @classmethod
    def of(cls, profile: Profile) -> Setup:
        """How the engine of a profile was opened."""
        return cls(
            hardware=profile.hardware,
            device=profile.device,
            threads=profile.threads,
            load_ms=profile.load_ms,
            resident_bytes=profile.resident_bytes,
        )

    def fits(self, profile: Profile) -> bool:
        """Whether a profile was measured as this engine runs."""
        measured = (profile.hardware, profile.device, profile.threads)
        return measured == (self.hardware, self.device, self.threads)


def quick_profile(
    engine: Engine,
    setup: Setup,
    *,
    max_tokens: int,
    budget_s: float = QUICK_BUDGET_S,
    now_s: Callable[[], float] = time.perf_counter,
) -> Profile:
    """Measure an engine within a budget, small batches first; what would not fit is left out.

    Args:
        engine: ready, not in use elsewhere.
        setup: how it runs.
        max_tokens: the checkpoint's limit; longer texts are not measured.
        budget_s: seconds to spend. The two smallest batches run whatever they take.
        now_s: the clock.
    """
    deadline_s = now_s() + budget_s
    cells: list[Cell] = []
    round_ms: list[float] = []
    for cell in cells_within(max_tokens, GPU_CELLS if setup.device == "cuda" else QUICK_CELLS):
        if len(cells) >= LEAST_CELLS:
            per_token_ms = round_ms[-1] / _tokens(cells[-1])
            expected_ms = RUNS_OF_A_NEW_SHAPE * per_token_ms * _tokens(cell)
            if now_s() + expected_ms / 1000 > deadline_s:
                break
        run_ms(engine, cell, now_s=now_s)
        cells.append(cell)
        round_ms.append(run_ms(engine, cell, now_s=now_s))
    rounds = [round_ms]
    while len(rounds) < QUICK_ROUNDS and now_s() + max(map(sum, rounds)) / 1000 <= deadline_s:
        rounds.append([run_ms(engine, cell, now_s=now_s) for cell in cells])
    return fit(cells, np.array(rounds), setup=setup)


def run_ms(engine: Engine, cell: Cell, *, now_s: Callable[[], float] = time.perf_counter) -> float:
    """Time of one batch of equally long texts."""
    count, length = cell
    texts = [np.ones(length, dtype=np.int32)] * count
    started_s = now_s()
    engine.embed(texts)
    return (now_s() - started_s) * 1000


def cells_within(max_tokens: int, cells: Sequence[Cell]) -> list[Cell]:
    """The cells whose texts a checkpoint accepts; for a tiny limit, one and many texts of it."""
    kept = [cell for cell in cells if cell[1] <= max_tokens]
    return kept if len(kept) >= LEAST_CELLS else [(1, max_tokens), (8, max_tokens)]


def fit(cells: Sequence[Cell], times_ms: Times, *, setup: Setup) -> Profile:
    """Fit the two parameters to medians by least squares, relative errors weighing alike.

    Args:
        cells: the batches measured.
        times_ms: [rounds, cells].
        setup: how the engine ran.
    """
    tokens = np.array([_tokens(cell) for cell in cells], dtype=np.float64)
    medians = np.median(times_ms, axis=0)
    base_ms, per_token_ms = _line(tokens, medians)
    fitted = base_ms + per_token_ms * tokens
    return Profile(
        hardware=setup.hardware,
        device=setup.device,
        threads=setup.threads,
        base_ms=base_ms,
        per_token_ms=per_token_ms,
        spread=max(1.0, float(np.percentile(times_ms / fitted, 95))),
        batch_tokens=_best_batch(tokens, medians),
        grid=tuple(
            GridCell(texts=count, tokens=length, median_ms=float(ms))
            for (count, length), ms in zip(cells, medians, strict=True)
        ),
        load_ms=setup.load_ms,
        resident_bytes=setup.resident_bytes,
    )


def _line(tokens: Times, medians_ms: Times) -> tuple[float, float]:
    """Base and slope, neither below 0: noise may make one so, and then the line starts at 0."""
    design = np.stack([np.ones_like(tokens), tokens], axis=1) / medians_ms[:, None]
    (base_ms, per_token_ms), *_ = np.linalg.lstsq(design, np.ones_like(tokens), rcond=None)
    if base_ms >= 0 and per_token_ms > 0:
        return float(base_ms), float(per_token_ms)
    share = tokens / medians_ms
    return 0.0, float(share.sum() / (share**2).sum())


def _best_batch(tokens: Times, medians_ms: Times) -> int:
    """The smallest batch size about as cheap per token as the cheapest one measured."""
    nearest = np.rint(np.log2(tokens))
    cost = {
        size: float((medians_ms[cells] / tokens[cells]).mean())
        for size in BATCH_TOKENS
        if (cells := nearest == np.log2(size)).any()
    }
    if not cost:
        return int(tokens.max())
    best = min(cost.values())
    return min(size for size, ms in cost.items() if ms <= best * AS_GOOD_AS_BEST)


def _tokens(cell: Cell) -> int:
    return cell[0] * cell[1]


def resident_bytes() -> int:
    """Memory that this process holds now; where the system does not say so, its peak."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def hardware_name(device: Device) -> str:
    """The processor, its cores and the instructions that decide which variant wins."""
    if device == "cuda":
        return _gpu_name()
    return this_cpu().name


def _gpu_name() -> str:
    """As PyTorch names it; a runtime may bring a GPU along where PyTorch has none."""
    try:
        import torch
    except ImportError:
        return UNKNOWN_GPU
    return torch.cuda.get_device_name() if torch.cuda.is_available() else UNKNOWN_GPU
