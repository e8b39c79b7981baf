"""The `micro` sub-command: its options. What it times is imported only then: a GPU machine lacks it."""

from __future__ import annotations

import argparse
from pathlib import Path

from converters.checkpoint import DEFAULT_CHECKPOINT
from loadtests import decision_bench

TIMES = 2000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to the sub-command's parser."""
    parser.add_argument("--times", type=int, default=TIMES, help="(default: %(default)s)")
    parser.add_argument(
        "--decisions", type=int, default=decision_bench.DECISIONS, help="(default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of states (default: %(default)s)")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help=f"file to tokenise with (default: that of the package {DEFAULT_CHECKPOINT})",
    )


def micro(args: argparse.Namespace) -> int:
    """Run the command; always 0, since times alone prove nothing."""
    from loadtests.micro import micro as run

    return run(args)
