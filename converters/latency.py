"""What a variant costs on this machine: `base + per_token * padded tokens`, its spread, its best batch.

The engine that will serve is the one that is measured, with the threads it will have. Rounds of all
engines are interleaved, so that a noisy minute touches each alike and their ratios hold.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serve_app.engines.base import Device, Engine
from serve_app.manifest import Profile

ROUNDS = 7
LENGTHS_BY_COUNT = {
    1: (8, 16, 32, 64, 128, 256),
    4: (16, 64, 128, 256),
    16: (16, 64),
    32: (16,),
}
BATCH_TOKENS = (64, 128, 256, 512, 1024)
AS_GOOD_AS_BEST = 1.03
CPU_FLAGS = ("avx2", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")

Cell = tuple[int, int]  # texts, tokens each


def profile_all(
    engines: Mapping[str, Engine], *, max_tokens: int, threads: int, device: Device
) -> dict[str, Profile]:
    """Measure engines side by side.

    Args:
        engines: by variant.
        max_tokens: the checkpoint's limit; longer texts are not measured.
        threads: what the engines were opened with.
        device: where they run.
    """
    cells = _grid(max_tokens)
    times_ms = {name: np.empty((ROUNDS, len(cells))) for name in engines}
    for column, cell in enumerate(cells):
        for engine in engines.values():
            _run_ms(engine, cell)  # first runs of a shape allocate and compile
        for row in range(ROUNDS):
            for name, engine in engines.items():
                times_ms[name][row, column] = _run_ms(engine, cell)
    return {
        name: fit(cells, times, hardware=hardware_name(device), threads=threads, device=device)
        for name, times in times_ms.items()
    }


def fit(
    cells: list[Cell],
    times_ms: npt.NDArray[np.float64],
    *,
    hardware: str,
    threads: int,
    device: Device,
) -> Profile:
    """Fit the two parameters to medians, relative errors weighing alike.

    Args:
        cells: the batches measured.
        times_ms: [rounds, cells].
        hardware: see `hardware_name`.
        threads: compute threads.
        device: where it ran.
    """
    tokens = np.array([count * length for count, length in cells], dtype=np.float64)
    medians = np.median(times_ms, axis=0)
    design = np.stack([np.ones_like(tokens), tokens], axis=1) / medians[:, None]
    (base_ms, per_token_ms), *_ = np.linalg.lstsq(design, np.ones_like(tokens), rcond=None)
    base_ms = max(0.0, float(base_ms))
    fitted = base_ms + per_token_ms * tokens
    return Profile(
        hardware=hardware,
        device=device,
        threads=threads,
        base_ms=base_ms,
        per_token_ms=float(per_token_ms),
        spread=max(1.0, float(np.percentile(times_ms / fitted, 95))),
        batch_tokens=_best_batch(tokens, medians),
    )


def _best_batch(tokens: npt.NDArray[np.float64], medians_ms: npt.NDArray[np.float64]) -> int:
    """The smallest batch size about as cheap per token as the cheapest one measured."""
    cost = {
        size: float((medians_ms[tokens == size] / size).mean())
        for size in BATCH_TOKENS
        if (tokens == size).any()
    }
    best = min(cost.values())
    return min(size for size, ms in cost.items() if ms <= best * AS_GOOD_AS_BEST)


def _grid(max_tokens: int) -> list[Cell]:
    return [
        (count, length)
        for count, lengths in LENGTHS_BY_COUNT.items()
        for length in lengths
        if length <= max_tokens
    ]


def _run_ms(engine: Engine, cell: Cell) -> float:
    count, length = cell
    texts = [np.ones(length, dtype=np.int32)] * count
    started_s = time.perf_counter()
    engine.embed(texts)
    return (time.perf_counter() - started_s) * 1000


def hardware_name(device: Device) -> str:
    """The processor, its cores and the instructions that decide which variant wins."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    model, flags = platform.processor() or platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        facts = dict(
            [part.strip() for part in line.split(":", 1)]
            for line in cpuinfo.read_text().splitlines()
            if ":" in line
        )
        model = facts.get("model name", model)
        present = set(facts.get("flags", "").split())
        flags = " ".join(flag for flag in CPU_FLAGS if flag in present)
    return f"{model}, {os.cpu_count()} cores, {flags or 'flags unknown'}"
