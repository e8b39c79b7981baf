"""Profiles of many engines, measured side by side with the engines that will serve.

Rounds of all engines are interleaved, so that a noisy minute touches each alike and their ratios
hold. Load time and memory are those of a process of its own: here other engines share the heap.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.engines.base import Device, Engine, open_engine
from serve_app.engines.measure import (
    GPU_CELLS,
    Cell,
    Setup,
    Times,
    cells_within,
    fit,
    hardware_name,
    resident_bytes,
    run_ms,
)
from serve_app.errors import ConversionError
from serve_app.manifest import GridCell, Profile, Runtime, Variant

ROUNDS = 7
LENGTHS_BY_COUNT = {  # most as texts have them: some engines are fastest at multiples of 16
    1: (8, 12, 24, 40, 72, 136, 256),
    4: (12, 72, 136, 256),
    16: (12, 40, 72),
    32: (12,),
}
CELLS = tuple((count, n) for count, lengths in LENGTHS_BY_COUNT.items() for n in lengths)
LARGEST_BATCH_TOKENS = 1024
# What a GPU's driver leaves on Linux: NVIDIA's, the same in WSL and on Jetson, AMD's.
GPU_DRIVERS = tuple(map(Path, ("/dev/nvidiactl", "/dev/dxg", "/dev/nvmap", "/dev/kfd")))


def profile_all(
    engines: Mapping[str, Engine], setups: Mapping[str, Setup], *, max_tokens: int
) -> dict[str, Profile]:
    """Measure engines side by side.

    Args:
        engines: by variant, all on one device.
        setups: how each was opened, by variant; see `setup`.
        max_tokens: the checkpoint's limit; longer texts are not measured.
    """
    on_gpu = any(setup.device == "cuda" for setup in setups.values())
    cells = cells_within(max_tokens, GPU_CELLS if on_gpu else CELLS)
    times_ms = interleaved_ms(engines, cells)
    return {name: fit(cells, times, setup=setups[name]) for name, times in times_ms.items()}


def measured_grids(
    engines: Mapping[str, Engine], *, max_tokens: int
) -> dict[str, tuple[GridCell, ...]]:
    """Medians of one interleaved run over the latency grid, without a fit."""
    cells = cells_within(max_tokens, CELLS)
    return {
        name: tuple(
            GridCell(texts=count, tokens=length, median_ms=float(ms))
            for (count, length), ms in zip(cells, np.median(times, axis=0), strict=True)
        )
        for name, times in interleaved_ms(engines, cells).items()
    }


def interleaved_ms(engines: Mapping[str, Engine], cells: Sequence[Cell]) -> dict[str, Times]:
    """Times by engine, [rounds, cells]; in each round every engine runs once."""
    times_ms = {name: np.empty((ROUNDS, len(cells))) for name in engines}
    for column, cell in enumerate(cells):
        for engine in engines.values():
            run_ms(engine, cell)  # first runs of a shape allocate and compile
        for row in range(ROUNDS):
            for name, engine in engines.items():
                times_ms[name][row, column] = run_ms(engine, cell)
    return times_ms


def setup(folder: Path, variant: Variant, *, threads: int, device: Device) -> Setup:
    """Open an artifact in a fresh process, and measure load time and memory there.

    Raises:
        ConversionError: that process failed.
    """
    asked = json.dumps(
        {
            "folder": str(folder),
            "threads": threads,
            "device": device,
            "spec": asdict(Variant(**variant_fields(variant))),
        }
    )
    done = subprocess.run(
        [sys.executable, "-m", "converters.latency"],
        input=asked,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last_line = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ConversionError(f"{variant.variant} does not open in a fresh process: {last_line}")
    load_ms, held_bytes = json.loads(done.stdout.splitlines()[-1])
    return Setup(
        hardware=hardware_name(device),
        device=device,
        threads=threads,
        load_ms=load_ms,
        resident_bytes=held_bytes,
    )


def gpu_count() -> int:
    """GPUs that PyTorch can use here; without PyTorch none can be asked for.

    Where there is no driver it is not asked: importing it takes a second or two of each start.
    """
    if sys.platform == "linux" and not any(driver.exists() for driver in GPU_DRIVERS):
        return 0
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count()


def gpu_runs(runtime: Runtime) -> bool:
    """Whether a runtime can use a GPU of this machine: ONNX Runtime comes with and without CUDA."""
    if not gpu_count():
        return False
    if runtime != "onnx":
        return True
    from serve_app.engines.onnx_engine import has_cuda

    return has_cuda()


def variant_fields(variant: Variant) -> dict[str, Any]:
    """The fields of a variant by name, without what a manifest adds."""
    return {field.name: getattr(variant, field.name) for field in fields(Variant)}


def main() -> None:
    """The fresh process: what `setup` asks comes in on stdin, [load_ms, bytes] goes out."""
    from pydantic import TypeAdapter

    asked = json.load(sys.stdin)
    variant = TypeAdapter(Variant).validate_python(asked["spec"])
    started_s = time.perf_counter()
    engine = open_engine(
        Path(asked["folder"]), variant, threads=asked["threads"], device=asked["device"]
    )
    load_ms = (time.perf_counter() - started_s) * 1000
    length = variant.checkpoint.max_tokens
    run_ms(engine, (max(1, LARGEST_BATCH_TOKENS // length), length))
    print(json.dumps([load_ms, resident_bytes()]))


if __name__ == "__main__":
    main()
