"""The options of `python -m loadtests bench` and `peers`, and what bench starts."""

from __future__ import annotations

import argparse
from pathlib import Path

from loadtests.bench.workloads import NAMES
from loadtests.errors import BadOption

CLIENTS = "1,16,64"
SUBJECTS = ("engine", "bare", "ours", "stock")
QUICK = {"rounds": 1, "seconds": 2.0, "warm": 0.5, "idle": 3.0}
FULL = {"rounds": 3, "seconds": 4.0, "warm": 1.0, "idle": 20.0}


def add_options(parser: argparse.ArgumentParser, *, clients: str = CLIENTS) -> None:
    """Add them to the sub-command's parser."""
    parser.add_argument(
        "--artifacts", type=Path, default=Path("artifacts"), help="(default: %(default)s)"
    )
    parser.add_argument(
        "--variants", help="to deploy, as onnx-fp32,onnx-int8 (default: the ladder)"
    )
    parser.add_argument("--quick", action="store_true", help="one short round: does it run at all")
    parser.add_argument(
        "--rows", help="of these subjects only, as ours,bare: those whose name has one of the words"
    )
    parser.add_argument(
        "--workloads", default=",".join(NAMES), help="what is asked (default: %(default)s)"
    )
    parser.add_argument(
        "--clients", default=clients, help="how many at once (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, help=f"(default: {FULL['rounds']}; quick: 1)")
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"of each measurement (default: {FULL['seconds']:g}; quick: {QUICK['seconds']:g})",
    )
    parser.add_argument(
        "--idle-seconds",
        type=float,
        help=f"of looking at an idle cluster, 0 for none (default: {FULL['idle']:g}; "
        f"quick: {QUICK['idle']:g})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder (default: loadtests/results/DATE-MACHINE/ and the command's name)",
    )


def add_peers_options(parser: argparse.ArgumentParser) -> None:
    """As of bench, and where the peers' environments are."""
    add_options(parser, clients="16")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("peers"),
        help="folder of the peers' environments, made once and kept (default: %(default)s)",
    )


def peers(args: argparse.Namespace) -> int:
    """Run the command; raises LoadTestError."""
    from loadtests.bench.run import options_of
    from loadtests.peers.run import run_peers

    return run_peers(options_of(args), work=args.work)


def bench(args: argparse.Namespace) -> int:
    """Run the command; raises LoadTestError."""
    from loadtests.bench.run import options_of, run_bench

    return run_bench(options_of(args))


def listed(option: str, given: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Names with commas between, each of them known; raises BadOption."""
    names = tuple(dict.fromkeys(part.strip() for part in given.split(",")))
    for name in names:
        if name not in known:
            raise BadOption(option, given, f"no {name!r}; known are {', '.join(known)}")
    return names


def counts(option: str, given: str) -> tuple[int, ...]:
    """Whole numbers above zero with commas between; raises BadOption."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in given.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise BadOption(option, given, "whole numbers from 1 on, as 1,16,64")
    return numbers
