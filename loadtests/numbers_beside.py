"""A report's numbers as JSON and CSV, for those who draw their own figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtests.findings import Findings
from loadtests.measures import Measures
from loadtests.time_plots import timeline

NUMBERS_NAME = "report.json"
COUNTS = ("requests", "answered", "rejected", "expired", "errors")
PHASE_HEADS = (
    "#", "phase", "offered/s", "answered/s", "texts/s", "p50 ms", "p95 ms", "p99 ms", "within budget",
    "mean fidelity", "requests", "answered", "429", "504", "errors", "client",
)  # fmt: skip


def write_numbers(findings: Findings, folder: Path) -> None:
    """Write `report.json`, `phases.csv`, `saturation.csv` and `over_time.csv`."""
    text = json.dumps(_numbers(findings), indent=2, ensure_ascii=False)
    (folder / NUMBERS_NAME).write_text(text + "\n", encoding="utf-8")
    phases = ((name, *cells(m)) for name, m in findings.measures.items())
    _write(folder / "phases.csv", PHASE_HEADS[1:-1], phases)
    if (c := findings.curve) is not None:
        columns = [
            c.time_s - c.time_s[0],
            c.offered_per_s,
            c.achieved_per_s,
            c.within_share,
            1.0 * c.good,
        ]
        heads = ["time_s", "offered_per_s", "achieved_per_s", "within_share", "good"]
        _write(folder / "saturation.csv", heads, zip(*(x.round(4) for x in columns), strict=True))
    time_s, asked, answered, p95 = timeline(findings)
    heads = [f"{v}_per_s" for v in answered] + [f"{v}_p95_ms" for v in p95]
    columns = [time_s, asked, *answered.values(), *p95.values()]
    rows = zip(*(x.round(3) for x in columns), strict=True)
    _write(folder / "over_time.csv", ["time_s", "offered_per_s", *heads], rows)


def cells(m: Measures) -> Iterator[str]:
    """A phase's cells, from offered load to errors."""
    for rate in (m.offered_per_s, m.throughput, m.texts_per_s):
        yield f"{rate:.1f}"
    for latency in (m.p50_ms, m.p95_ms, m.p99_ms):
        yield number(latency, 1)
    yield percent(m.within_budget)
    yield number(m.fidelity, 5)
    for count in COUNTS:
        yield str(getattr(m, count))


def percent(share: float | None) -> str:
    """`99.12%`, or nothing."""
    return "" if share is None else f"{share:.2%}"


def number(value: float | None, digits: int) -> str:
    """A number, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"


def _numbers(findings: Findings) -> dict[str, Any]:
    return {
        "about": asdict(findings.about),
        "knee": None if findings.knee is None else asdict(findings.knee),
        "ramp": findings.ramp,
        "phases": {name: asdict(m) for name, m in findings.measures.items()},
        "within_budget": findings.by_budget,
        "sending_late_ms": findings.sending_late_ms,
        "memory_growth": findings.memory_growth,
        "warnings": findings.warnings,
        "objectives": [asdict(v) for v in findings.verdicts],
    }


def _write(file: Path, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        lines = csv.writer(opened, lineterminator="\n")
        lines.writerow(heads)
        lines.writerows(rows)
