"""The options of `python -m loadtests reality`, and what they start."""

from __future__ import annotations

import argparse
from pathlib import Path

from loadtests.errors import BadOption

HOST = "http://127.0.0.1:8000"
LEVELS = "0.3,0.6,0.9"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to the sub-command's parser."""
    parser.add_argument("--host", default=HOST, help="the server's URL (default: %(default)s)")
    parser.add_argument(
        "--machine",
        type=Path,
        required=True,
        metavar="FILE",
        help="the server's machine file, made by `simulate --machine-from`",
    )
    parser.add_argument(
        "--levels",
        default=LEVELS,
        help="loads, relative to what the best rung alone sustains (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of each phase (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=1,
        help="of all phases, of which medians (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("load/reality"), help="folder (default: %(default)s)"
    )


def reality(args: argparse.Namespace) -> int:
    """Run the command; raises LoadTestError."""
    from loadtests.machine_file import read_machine
    from loadtests.progress_line import ProgressLine
    from loadtests.reality import Options, compare

    try:
        levels = tuple(float(part) for part in args.levels.split(","))
    except ValueError:
        levels = ()
    if not levels or min(levels) <= 0:
        raise BadOption("--levels", args.levels, "numbers above zero, as 0.3,0.6,0.9")
    if not args.seconds > 0:
        raise BadOption("--seconds", args.seconds, "not above zero")
    if args.rounds < 1:
        raise BadOption("--rounds", args.rounds, "from 1 on")
    options = Options(
        host=args.host.rstrip("/"),
        out=args.out,
        levels=levels,
        seconds=args.seconds,
        rounds=args.rounds,
    )
    compare(read_machine(args.machine), options, ProgressLine())
    print(args.out / "reality.md")
    return 0
