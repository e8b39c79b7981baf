"""Two runs side by side: what changed from A to B, phase by phase."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from loadtests.findings import Findings, gather

ROWS = (
    ("offered/s", "offered_per_s", 1, 1),
    ("answered/s", "throughput", 1, 1),
    ("within budget, %", "within_budget", 100, 2),
    ("mean fidelity", "fidelity", 1, 5),
    ("p50 ms", "p50_ms", 1, 1),
    ("p95 ms", "p95_ms", 1, 1),
    ("p99 ms", "p99_ms", 1, 1),
    ("429", "rejected", 1, 0),
    ("504", "expired", 1, 0),
    ("errors", "errors", 1, 0),
)


def compare(run_a: Path, run_b: Path) -> str:
    """A table as text; raises BadFile where no run is."""
    a, b = gather(run_a), gather(run_b)
    rows = [("", "", str(run_a), str(run_b), "change"), *_heads(a, b), *_phases(a, b)]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    words = [cell.ljust(w) for cell, w in zip(row[:2], widths[:2], strict=True)]
    numbers = [cell.rjust(w) for cell, w in zip(row[2:], widths[2:], strict=True)]
    return "  ".join([*words, *numbers]).rstrip()


def _heads(a: Findings, b: Findings) -> Iterator[tuple[str, ...]]:
    for name in ("host", "profile", "mix"):
        one, other = getattr(a.about, name), getattr(b.about, name)
        if one != other:
            yield name, "", one, other, "differs"
    yield "commit", "", a.about.provenance.commit, b.about.provenance.commit, ""
    machines = a.about.provenance.machine, b.about.provenance.machine
    if machines[0] != machines[1]:
        yield "machine", "", *machines, "differs"
    knees = [f.knee.load_per_s if f.knee else None for f in (a, b)]
    yield "knee", "requests/s", *_numbers(*knees, digits=1)
    growth = [None if f.memory_growth is None else 100 * f.memory_growth for f in (a, b)]
    yield "memory", "growth, %", *_numbers(*growth, digits=2)


def _phases(a: Findings, b: Findings) -> Iterator[tuple[str, ...]]:
    for phase in [*a.measures, *(p for p in b.measures if p not in a.measures)]:
        name = phase
        for head, field, scale, digits in ROWS:
            values = [getattr(f.measures.get(phase), field, None) for f in (a, b)]
            if any(values):
                scaled = [None if v is None else scale * v for v in values]
                yield name, head, *_numbers(*scaled, digits=digits)
                name = ""


def _numbers(a: float | None, b: float | None, *, digits: int) -> tuple[str, str, str]:
    shown = tuple("–" if v is None else f"{v:.{digits}f}" for v in (a, b))
    change = "" if a is None or b is None else f"{b - a:+.{digits}f}"
    return shown[0], shown[1], change
