"""A run of `bench`: from options to a folder of results."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from converters.provenance import Provenance, provenance
from loadtests.bench import command, ours
from loadtests.bench.engines import EngineSubject
from loadtests.bench.figure import draw
from loadtests.bench.places import results_folder
from loadtests.bench.results import Results, write_results
from loadtests.bench.rounds import Course
from loadtests.bench.samples import Cell, Pace, Subject
from loadtests.bench.tables import markdown, shown, target_table, write_tables
from loadtests.bench.targets import CLIENTS, Target, bench_targets, stock_ratios
from loadtests.bench.workloads import NAMES, Workload, mean_tokens, workloads
from loadtests.errors import BadOption, LoadTestError
from loadtests.local_server import build_missing
from loadtests.progress_line import ProgressLine
from serve_app.engines.tokenization import Tokenizer
from serve_app.errors import SetupError
from serve_app.registry import Ladder, load_ladder

TOOLS = ("ray", "uvicorn", "onnxruntime", "openvino", "tokenizers", "numpy", "orjson")
INTERRUPTED = 130
LOGS = "logs"  # git-ignored
NO_LIMIT = 1_000_000  # tokens: a text is counted whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to measure."""

    artifacts: Path
    variants: tuple[str, ...]  # empty: the ladder
    words: tuple[str, ...]  # of subjects' names; empty: all
    cells: tuple[Cell, ...]
    rounds: int
    pace: Pace
    out: Path | None


@dataclass(frozen=True, slots=True)
class Ground:
    """What all subjects stand on: the variants, and what is asked."""

    ladder: Ladder
    workloads: Mapping[str, Workload]
    mean_tokens: Mapping[str, float]

    @property
    def notes(self) -> tuple[str, str]:
        """For people."""
        variants = ", ".join(
            f"{r.manifest.variant} (p1 {r.manifest.fidelity.p1:.5f})" for r in self.ladder.rungs
        )
        tokens = ", ".join(f"{name} {mean:.0f}" for name, mean in self.mean_tokens.items())
        return f"deployed: {variants}", f"mean tokens of a text: {tokens}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run's tables say besides its measurements."""

    title: str
    targets: Sequence[Target]
    more: str


def options_of(args: argparse.Namespace) -> Options:
    """Of a command line; raises BadOption."""
    default = command.QUICK if args.quick else command.FULL
    names = command.listed("--workloads", args.workloads, NAMES)
    clients = command.counts("--clients", args.clients)
    rounds = int(default["rounds"]) if args.rounds is None else args.rounds
    seconds = default["seconds"] if args.seconds is None else args.seconds
    idle_s = default["idle"] if args.idle_seconds is None else args.idle_seconds
    if rounds < 1:
        raise BadOption("--rounds", rounds, "from 1 on")
    if not seconds > 0:
        raise BadOption("--seconds", f"{seconds:g}", "not above zero")
    if not idle_s >= 0:
        raise BadOption("--idle-seconds", f"{idle_s:g}", "from 0 on")
    return Options(
        artifacts=args.artifacts,
        variants=tuple(v.strip() for v in (args.variants or "").split(",") if v.strip()),
        words=tuple(w.strip() for w in (args.rows or "").split(",") if w.strip()),
        cells=tuple(Cell(name, number) for name in names for number in clients),
        rounds=rounds,
        pace=Pace(seconds=seconds, warm_s=default["warm"], idle_s=idle_s),
        out=args.out,
    )


def ground(options: Options) -> Ground:
    """Build what is missing, and draw the texts; raises LoadTestError."""
    build_missing(options.artifacts)
    try:
        ladder = load_ladder(options.artifacts, named=options.variants)
    except SetupError as error:
        raise LoadTestError(str(error)) from error
    tokenizer = Tokenizer(ladder.tokenizer_file, max_tokens=NO_LIMIT)

    def count(text: str) -> int:
        return tokenizer.encode([text]).tokens

    drawn = workloads(count)
    asked = dict.fromkeys(cell.workload for cell in options.cells)
    return Ground(ladder, drawn, {name: mean_tokens(drawn[name], count) for name in asked})


def run_bench(options: Options) -> int:
    """Measure and write; what was measured before an interruption is kept."""
    found = ground(options)
    subjects = chosen(_subjects(options, found.ladder), options.words)
    folder = results_folder("bench", out=options.out)
    variants = ours.names_of(found.ladder)

    def summary(results: Results) -> Summary:
        ratios = [(what, shown(value)) for what, value in stock_ratios(results)]
        return Summary(
            title="What a text costs",
            targets=bench_targets(results, variants),
            more=f"Serve's stock proxy and settings, CPU per text ÷ ours:\n\n"
            f"{markdown(('', '×'), ratios)}"
            if ratios
            else "",
        )

    return measure(subjects, options, found, folder, summary)


def measure(
    subjects: Sequence[Subject],
    options: Options,
    found: Ground,
    folder: Path,
    summary: Callable[[Results], Summary],
    *,
    figure: str = "bench.png",
) -> int:
    """Run all rounds; results are on disk after each outcome, tables and the figure at the end."""
    made, results, code = provenance(packages=TOOLS), Results(), 0
    about = {
        "variants": {r.manifest.variant: r.manifest.fidelity.p1 for r in found.ladder.rungs},
        "mean_tokens": dict(found.mean_tokens),
        "rounds": options.rounds,
        "seconds": options.pace.seconds,
        "warm_s": options.pace.warm_s,
    }
    progress, logs = ProgressLine(), folder / LOGS
    logs.mkdir(exist_ok=True)
    course = Course(
        cells=options.cells,
        workloads=found.workloads,
        rounds=options.rounds,
        pace=options.pace,
        folder=logs,
        tell=progress.done,
    )
    try:
        for outcome in course.run(subjects):
            results.add(outcome)
            write_results(results, folder, made=made, about=about)
    except KeyboardInterrupt:
        progress.done("interrupted: what was measured is kept")
        code = INTERRUPTED
    if results.measured:
        _write(summary(results), results, folder, made, (*found.notes, _paced(options, results)))
        clients = {c.clients for c in options.cells}
        shown_clients = CLIENTS if CLIENTS in clients else max(clients)
        draw(results, folder / figure, clients=shown_clients, made=made)
    print(folder)
    return code or (2 if results.failed else 0)


def _write(
    summary: Summary, results: Results, folder: Path, made: Provenance, notes: Sequence[str]
) -> None:
    """The tables, and the targets on the screen too."""
    write_tables(
        folder,
        results,
        summary.targets,
        title=summary.title,
        made=made,
        notes=notes,
        more=summary.more,
    )
    print(target_table(summary.targets))


def chosen(subjects: Sequence[Subject], words: Sequence[str]) -> list[Subject]:
    """Those whose name has one of the words; raises BadOption where none is left."""
    found = [s for s in subjects if not words or any(word in s.name for word in words)]
    if not found:
        names = ", ".join(s.name for s in subjects)
        raise BadOption("--rows", ",".join(words), f"no subject is named so; there are {names}")
    return found


def _subjects(options: Options, ladder: Ladder) -> list[Subject]:
    return [
        *(EngineSubject(rung.folder, rung.manifest.variant) for rung in ladder.rungs),
        ours.bare(options.artifacts, ladder),
        ours.ours(options.artifacts, ladder),
        ours.proxy(options.artifacts, ladder),
        ours.handles(options.artifacts, ladder),
        ours.stock(options.artifacts, ladder),
    ]


def _paced(options: Options, results: Results) -> str:
    """How it was measured, for people; an interrupted run has fewer rounds than it was to have."""
    pace, rounds = options.pace, len({m.round for m in results.measured})
    counted = f"medians of {rounds} rounds" if rounds > 1 else "one round"
    return (
        f"{counted}; {pace.seconds:g} s each after {pace.warm_s:g} s of "
        "warm-up, then until the last answer; each subject alone on the machine, started anew in each "
        "round; ratios are medians of each round's ratio. CPU is the server's whole process tree, "
        "without the client"
    )
