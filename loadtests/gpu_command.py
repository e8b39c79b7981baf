"""The options of `python -m loadtests gpu`, and the order in which a run spends its ten minutes.

It needs torch, transformers, numpy and tokenizers besides this repository; what else is there, it measures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loadtests.errors import BadOption

if TYPE_CHECKING:
    from loadtests.gpu_bench import Bench
    from loadtests.gpu_readings import Deadline, Reading, Section

CHECKPOINT = Path("load/gpu-checkpoint")
OUT = Path("load/gpu/gpu.json")
SECONDS = 510.0  # a reading under way at the end is finished, and ten minutes are all there is
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "sentence-transformers", "onnxruntime")
MIB = 2**20


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to the sub-command's parser."""
    parser.add_argument(
        "--prepare",
        type=Path,
        metavar="FOLDER",
        help=f"write the FP16 checkpoint that a run takes there, as {CHECKPOINT}, and measure nothing",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="a folder that --prepare wrote (default: random weights only)",
    )
    parser.add_argument(
        "--device", default="cuda", choices=("cuda", "cpu"), help="(default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes: a smoke test, whose numbers mean nothing"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="for all sections (default: %(default)s)"
    )
    parser.add_argument("--only", help="sections by name, as ceilings,grid (default: all)")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file (default: %(default)s)")


def gpu(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.prepare:
        from loadtests.gpu_checkpoint import prepare

        print(f"{args.prepare}: {prepare(args.prepare) / MIB:.1f} MiB")
        return 0
    import torch
    from transformers.utils import logging

    from converters.provenance import provenance
    from loadtests.gpu_bench import Bench
    from loadtests.gpu_readings import run_sections
    from loadtests.gpu_table import lines, write

    if args.device == "cuda" and not torch.cuda.is_available():
        raise BadOption(
            "--device", "cuda", "PyTorch finds no GPU here; --device cpu --quick tries it"
        )
    if args.device == "cpu" and not args.quick:
        raise BadOption("--device", "cpu", "only with --quick, as a smoke test")
    logging.disable_progress_bar()
    bench = Bench(device=torch.device(args.device), quick=args.quick, checkpoint=args.checkpoint)
    made = provenance(args.device, packages=PACKAGES)
    device = "cpu, smoke test" if args.quick else made.machine
    print(*made.lines, sep="\n")
    outcomes = run_sections(
        sections(bench, only=args.only), total_s=args.seconds, say=partial(print, flush=True)
    )
    write(
        args.out,
        outcomes,
        device=args.device if args.quick else device,
        quick=args.quick,
        made=made,
    )
    print(args.out, "", *lines(outcomes, device=device, quick=args.quick), sep="\n")
    return 0


def sections(bench: Bench, *, only: str | None = None) -> list[Section]:
    """All sections or the named ones, in the order of what would be missed most."""
    from loadtests import gpu_fidelity, gpu_memory, gpu_peers, gpu_sharing, gpu_speed
    from loadtests.gpu_readings import Section

    every: dict[str, tuple[float, Callable[[Bench, Deadline], Iterator[Reading]]]] = {
        "kernel": (20, gpu_fidelity.kernel),
        "fidelity": (30, gpu_fidelity.checkpoint),
        "parity": (30, gpu_fidelity.shapes),
        "ceilings": (20, gpu_speed.ceilings),
        "single": (25, gpu_speed.single),
        "sentence-transformers": (60, gpu_peers.sentence_transformers),
        "precisions": (60, gpu_speed.precisions),
        "grid": (110, gpu_speed.grid),
        "padding": (45, gpu_speed.padding),
        "memory": (40, gpu_memory.memory),
        "runs": (110, gpu_speed.runs),
        "sharing": (90, gpu_sharing.sharing),
        "onnx": (100, gpu_peers.onnx),
    }
    names = only.split(",") if only else list(every)
    for name in names:
        if name not in every:
            raise BadOption("--only", name, f"sections are {', '.join(every)}")
    return [
        Section(name=name, budget_s=every[name][0], measure=partial(every[name][1], bench))
        for name in names
    ]
