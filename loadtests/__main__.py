"""`python -m loadtests run|report|compare|simulate|reality|autoscale|bench|peers|micro|gpu`."""

from __future__ import annotations

import argparse
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from loadtests import (
    autoscale_command,
    gpu_command,
    micro_command,
    reality_command,
    simulate_command,
)
from loadtests.bench import command as bench_command
from loadtests.errors import LoadTestError
from loadtests.phases import PROFILES
from loadtests.slo import METRICS, parse_slo
from serve_app.compiled import require_current
from serve_app.errors import SetupError

HOST = "http://127.0.0.1:8000"
EXIT_MISSED = 1
EXIT_INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="loadtests", description="Put load on a running server, and report what it took."
    )
    commands = top.add_subparsers(dest="command", required=True)
    _add_run(commands.add_parser("run", help="run a matrix of phases and write its report"))
    again = commands.add_parser("report", help="write the report of a run anew")
    again.add_argument("run", type=Path, help="folder of a run")
    compare = commands.add_parser("compare", help="two runs side by side, phase by phase")
    compare.add_argument("run_a", type=Path, help="folder of a run")
    compare.add_argument("run_b", type=Path, help="folder of another")
    simulated = commands.add_parser("simulate", help="simulate the routing policy on a machine")
    simulate_command.add_options(simulated)
    scaled = commands.add_parser(
        "autoscale", help="compare what replica groups may follow, in a run"
    )
    autoscale_command.add_options(scaled)
    real = commands.add_parser("reality", help="hold the simulator against a running server")
    reality_command.add_options(real)
    gpu_command.add_options(
        commands.add_parser(
            "gpu", help="measure a GPU's replicas against FP32 and the card's ceilings"
        )
    )
    benched = commands.add_parser("bench", help="what a text costs, beside the bare engine")
    bench_command.add_options(benched)
    beside = commands.add_parser("peers", help="the same, beside what people run instead")
    bench_command.add_peers_options(beside)
    timed = commands.add_parser("micro", help="time the parts of a request's way")
    micro_command.add_options(timed)
    return top


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("--host", default=HOST, help="the server's URL (default: %(default)s)")
    run.add_argument(
        "--profile",
        default="quick",
        choices=tuple(PROFILES),
        help="quick: about 3 minutes; full: about 10; soak: 10 minutes at half of the knee "
        "(default: %(default)s)",
    )
    run.add_argument(
        "--out", type=Path, help="the run's folder, made new (default: load/DATE-PROFILE)"
    )
    run.add_argument(
        "--slo",
        action="append",
        default=[],
        help="objective as within_budget>=0.99 or routed-100:p95_ms<=50; may be given again, and "
        f"sets exit code 1 when missed. Metrics: {', '.join(METRICS)}. Without a phase, errors "
        "are those of all phases, and the rest is of routed-70 (soak: of soak)",
    )
    run.add_argument(
        "--mix", default="", help="as tight=3,interactive=4 (default: all six classes)"
    )
    run.add_argument("--texts", type=Path, help="file of texts, one a line (default: built-in)")
    run.add_argument("--trace", type=Path, help="CSV file of arrivals to replay (default: bursts)")
    run.add_argument("--seed", type=int, default=0, help="of arrivals and texts (default: 0)")
    run.add_argument(
        "--serve",
        type=Path,
        metavar="ARTIFACTS",
        help="where no server runs, build what is missing there, serve it, and stop it afterwards",
    )
    run.add_argument(
        "--variants",
        help="with --serve: the variants that it serves, as onnx-fp32,onnx-int8 (default: the ladder)",
    )


def main() -> None:
    """Run one command; errors that a person can mend are one line and exit code 2."""
    args = parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # background jobs of shells ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    try:
        require_current()
        sys.exit(COMMANDS[args.command](args))
    except LoadTestError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def _run(args: argparse.Namespace) -> int:
    slos = tuple(map(parse_slo, args.slo))
    from loadtests.report import write
    from loadtests.run import Options, run

    out = args.out or Path("load", f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}-{args.profile}")
    about = run(
        Options(
            host=args.host.rstrip("/"),
            profile=args.profile,
            out=out,
            slos=slos,
            mix=args.mix,
            texts=args.texts,
            trace=args.trace,
            seed=args.seed,
            serve=args.serve,
            variants=args.variants,
        )
    )
    findings = write(out)
    for verdict in findings.verdicts:
        print(verdict)
    print(out / "index.html")
    if about.interrupted:
        return EXIT_INTERRUPTED
    if about.stopped_by:
        return LoadTestError.exit_code
    return 0 if all(v.met for v in findings.verdicts) else EXIT_MISSED


def _report(args: argparse.Namespace) -> int:
    from loadtests.report import write

    write(args.run)
    print(args.run / "index.html")
    return 0


def _compare(args: argparse.Namespace) -> int:
    from loadtests.compare import compare

    print(compare(args.run_a, args.run_b))
    return 0


COMMANDS = {
    "run": _run,
    "report": _report,
    "compare": _compare,
    "simulate": simulate_command.simulate,
    "autoscale": autoscale_command.autoscale,
    "gpu": gpu_command.gpu,
    "reality": reality_command.reality,
    "bench": bench_command.bench,
    "peers": bench_command.peers,
    "micro": micro_command.micro,
}

if __name__ == "__main__":
    main()
