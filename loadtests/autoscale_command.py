"""The options of `python -m loadtests autoscale`, and what they start."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from loadtests.errors import BadOption

OUT = Path("loadtests/results/autoscaling")
PACKAGES = ("ray", "numpy", "httpx")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to the sub-command's parser."""
    parser.add_argument(
        "--artifacts", type=Path, default=Path("artifacts"), help="variants to double"
    )
    parser.add_argument(
        "--doubles",
        default="onnx-fp32,onnx-int8",
        help="which, of different precisions (default: %(default)s)",
    )
    parser.add_argument(
        "--slower", type=float, default=4.0, help="stretch their times (default: %(default)s)"
    )
    parser.add_argument(
        "--cpus", type=int, default=8, help="logical CPUs of the cluster (default: %(default)s)"
    )
    parser.add_argument(
        "--scale-down-s", type=float, default=6.0, help="of the server (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of arrivals (default: %(default)s)")
    parser.add_argument(
        "--shorter", type=float, default=1.0, help="divide the phases' lengths, to try it out"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder (default: %(default)s)")


def autoscale(args: argparse.Namespace) -> int:
    """Run the command; raises LoadTestError."""
    from converters.provenance import provenance
    from loadtests.autoscale import POLICIES, Setting, run, write
    from loadtests.autoscale_load import PHASES
    from loadtests.autoscale_plot import draw

    setting = Setting(
        originals=[args.artifacts / name for name in args.doubles.split(",")],
        slower=args.slower,
        cpus=args.cpus,
        scale_down_s=args.scale_down_s,
        seed=args.seed,
        phases=[replace(p, seconds=p.seconds / args.shorter) for p in PHASES],
    )
    for folder in setting.originals:
        if not folder.is_dir():
            raise BadOption("--doubles", args.doubles, f"there is no {folder}")
    played = [run(setting, policy) for policy in POLICIES]
    args.out.mkdir(parents=True, exist_ok=True)
    source = provenance(packages=PACKAGES)
    write(args.out / "autoscaling.json", setting, played, source)
    draw(args.out / "autoscaling.png", setting.phases, played, source)
    print(args.out / "autoscaling.json")
    return 0
