"""A run's tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from converters.provenance import Provenance
from loadtests.bench.engine_modes import ENGINE, SORTED_TEXT
from loadtests.bench.results import (
    Results,
    client_cores,
    cpu_s_per_1000,
    p50_ms,
    p99_ms,
    texts_per_s,
)
from loadtests.bench.samples import IN_PROCESS, Cell, Row
from loadtests.bench.targets import Target

HEADS = (
    *("row", "clients", "texts/s", "CPU-s per 1000 texts", "÷ engine"),
    *("p50 ms", "p99 ms", "client, cores", "failed"),
)


def write_tables(  # noqa: PLR0913
    folder: Path,
    results: Results,
    targets: Sequence[Target],
    *,
    title: str,
    made: Provenance,
    notes: Sequence[str],
    more: str = "",
) -> Path:
    """Write `tables.md`."""
    workloads = dict.fromkeys(cell.workload for cell in results.cells)
    parts = [
        f"# {title}",
        "\n".join(f"- {line}" for line in (*made.lines, *notes)),
        *([target_table(targets)] if targets else []),
        *([more] if more else []),
        *(f"## {name}\n\n{workload_table(results, name)}" for name in workloads),
        f"## Without load\n\n{standing_table(results)}",
        *(f"{f.subject} was not measured: {f.why}" for f in results.failed),
    ]
    file = folder / "tables.md"
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return file


def target_table(targets: Iterable[Target]) -> str:
    """Asked, measured, met."""
    return markdown(("", "asked", "measured", "met"), [target.cells for target in targets])


def workload_table(results: Results, workload: str) -> str:
    """Medians over rounds, by clients, then row."""
    lines = []
    for cell in sorted(results.cells, key=lambda c: c.clients):
        if cell.workload == workload:
            lines += [
                _line(results, row, cell)
                for row in results.rows
                if results.by_round(row, cell, texts_per_s)
            ]
    return markdown(HEADS, lines)


def _line(results: Results, row: Row, cell: Cell) -> tuple[str, ...]:
    engine = Row(ENGINE, row.variant, SORTED_TEXT), Cell(cell.workload, IN_PROCESS)
    over = None
    if row.subject != ENGINE and row.variant is not None:
        over = results.ratio((row, cell), engine, cpu_s_per_1000)
    failures = results.failures(row, cell)
    return (
        str(row),
        "" if cell.clients == IN_PROCESS else str(cell.clients),
        shown(results.median(row, cell, texts_per_s)),
        shown(results.median(row, cell, cpu_s_per_1000)),
        shown(over),
        shown(results.median(row, cell, p50_ms)),
        shown(results.median(row, cell, p99_ms)),
        shown(results.median(row, cell, client_cores), 2),
        ", ".join(f"{count} × {why}" for why, count in failures.items()),
    )


def standing_table(results: Results) -> str:
    """Time to ready and idle CPU, medians over rounds."""
    subjects = dict.fromkeys(s.subject for s in results.standings)
    lines = []
    for name in subjects:
        idle = results.standing(name, lambda s: s.idle_cores)
        cells = (
            results.standing(name, lambda s: s.prepared_s),
            results.standing(name, lambda s: s.ready_s),
            None if idle is None else 100 * idle,
        )
        lines.append((name, *map(shown, cells)))
    return markdown(("", "look at artifacts, s", "start to ready, s", "idle, % of a core"), lines)


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def shown(value: float | None, digits: int = 3) -> str:
    """Significant digits, without an exponent."""
    if value is None:
        return ""
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:.{digits}g}"
