"""The options of `python -m loadtests simulate`, and what they start."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from loadtests.errors import BadOption

SCENARIOS = ("steady", "bursty", "overload", "trace")
OUT = Path("load/simulate")
MACHINE_NAME = "machine.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to the sub-command's parser."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--machine", type=Path, metavar="FILE", help="measured ladder, cores and overheads, as JSON"
    )
    where.add_argument(
        "--machine-from",
        metavar="URL",
        help=f"ask a running server instead, write OUT/{MACHINE_NAME}, and simulate nothing",
    )
    parser.add_argument(
        "--scenario",
        default="all",
        choices=(*SCENARIOS, "all"),
        help="loads to simulate; trace needs --trace (default: %(default)s)",
    )
    parser.add_argument("--seeds", default="0,1,2", help="one run each (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, help="simulated length of each run (default: 300 to 1200)"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of each length")
    parser.add_argument(
        "--only-routed", action="store_true", help="no baselines, bound, ablations or metastability"
    )
    parser.add_argument(
        "--clients-here",
        action="store_true",
        help="clients run on the server's cores too, as in a load test of one host",
    )
    parser.add_argument(
        "--streams",
        type=int,
        help="batches that each replica runs side by side (default: as the machine's server)",
    )
    parser.add_argument("--trace", type=Path, metavar="CSV", help="arrivals to replay")
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes to simulate in (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder (default: %(default)s)")


def simulate(args: argparse.Namespace) -> int:
    """Run the command; raises LoadTestError."""
    from loadtests.machine_file import read_machine, write_machine
    from loadtests.progress_line import ProgressLine

    if args.machine_from:
        from loadtests.machine_from import machine_from

        write_machine(args.out / MACHINE_NAME, machine_from(args.machine_from.rstrip("/")))
        print(args.out / MACHINE_NAME)
        return 0
    from loadtests.simulate import Options
    from loadtests.simulate import simulate as run_all
    from loadtests.simulate_report import write

    options = Options(
        scenarios=_scenarios(args),
        seeds=_seeds(args.seeds),
        seconds=_seconds(args.seconds),
        quick=args.quick,
        only_routed=args.only_routed,
        trace=args.trace,
        jobs=min(max(args.jobs, 1), os.cpu_count() or 1),
    )
    measured = read_machine(args.machine)
    machine = measured.machine
    if not args.clients_here:
        machine = machine.with_clients_elsewhere()
    if args.streams is not None:
        machine = replace(machine, streams=_streams(args.streams))
    simulated = run_all(replace(measured, machine=machine), options, ProgressLine())
    print(write(simulated, args.out))
    print(args.out / "tables.md")
    return 0


def _scenarios(args: argparse.Namespace) -> tuple[str, ...]:
    if args.scenario == "trace" and args.trace is None:
        raise BadOption("--scenario", "trace", "--trace=CSV says which")
    if args.scenario != "all":
        return (args.scenario,)
    return SCENARIOS if args.trace is not None else SCENARIOS[:-1]


def _seeds(given: str) -> tuple[int, ...]:
    try:
        seeds = tuple(dict.fromkeys(int(part) for part in given.split(",")))
    except ValueError:
        raise BadOption("--seeds", given, "whole numbers, as 0,1,2") from None
    if min(seeds) < 0:
        raise BadOption("--seeds", given, "from 0 on")
    return seeds


def _streams(given: int) -> int:
    if given < 1:
        raise BadOption("--streams", given, "a whole number from 1 on")
    return given


def _seconds(given: float | None) -> float | None:
    if given is not None and not 1 <= given < float("inf"):
        raise BadOption("--seconds", given, "not a number of seconds from 1 on")
    return given
