"""All outcomes of a run, and the questions that tables and targets ask of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from converters.provenance import Provenance
from loadtests.bench.medians import difference, median, ratio
from loadtests.bench.samples import Cell, Failed, Measured, Outcome, Row, Sample, Standing

RESULTS_NAME = "results.json"

Figure = Callable[[Sample], float | None]


def texts_per_s(sample: Sample) -> float | None:
    return sample.texts_per_s


def cpu_s_per_1000(sample: Sample) -> float | None:
    return sample.cpu_s_per_1000


def p50_ms(sample: Sample) -> float | None:
    return sample.p50_ms


def p99_ms(sample: Sample) -> float | None:
    return sample.p99_ms


def client_cores(sample: Sample) -> float | None:
    """Cores that the client took from the server."""
    return None if sample.client_cpu_s is None else sample.client_cpu_s / sample.wall_s


@dataclass(slots=True)
class Results:
    """What was measured so far."""

    measured: list[Measured] = field(default_factory=list)
    standings: list[Standing] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Results:
        """Of outcomes in any order."""
        results = cls()
        for outcome in outcomes:
            results.add(outcome)
        return results

    def add(self, outcome: Outcome) -> None:
        """One more."""
        if isinstance(outcome, Measured):
            self.measured.append(outcome)
        elif isinstance(outcome, Standing):
            self.standings.append(outcome)
        else:
            self.failed.append(outcome)

    @property
    def rows(self) -> list[Row]:
        """Rows in the order in which they were first measured."""
        return list(dict.fromkeys(m.row for m in self.measured))

    @property
    def cells(self) -> list[Cell]:
        return list(dict.fromkeys(m.cell for m in self.measured))

    def by_round(self, row: Row, cell: Cell, figure: Figure) -> dict[int, float | None]:
        """A figure of each round."""
        return {m.round: figure(m.sample) for m in self.measured if m.row == row and m.cell == cell}

    def median(self, row: Row, cell: Cell, figure: Figure) -> float | None:
        """Over rounds."""
        return median(list(self.by_round(row, cell, figure).values()))

    def ratio(
        self, left: tuple[Row, Cell], right: tuple[Row, Cell], figure: Figure
    ) -> float | None:
        """The median over rounds of left ÷ right."""
        return ratio(self.by_round(*left, figure), self.by_round(*right, figure))

    def difference(
        self, left: tuple[Row, Cell], right: tuple[Row, Cell], figure: Figure
    ) -> float | None:
        """The median over rounds of left − right."""
        return difference(self.by_round(*left, figure), self.by_round(*right, figure))

    def failures(self, row: Row, cell: Cell) -> dict[str, int]:
        """Requests that brought no vectors, over all rounds."""
        counts: dict[str, int] = defaultdict(int)
        for m in self.measured:
            if m.row == row and m.cell == cell:
                for why, count in (m.sample.failures or {}).items():
                    counts[why] += count
        return dict(counts)

    def standing(self, subject: str, figure: Callable[[Standing], float | None]) -> float | None:
        """A figure of a subject without load, the median over rounds."""
        return median([figure(s) for s in self.standings if s.subject == subject])


def write_results(
    results: Results, folder: Path, *, made: Provenance, about: dict[str, object]
) -> None:
    """Write `results.json`: all that was measured, with commit, machine and command, a line each."""
    head = json.dumps({"provenance": asdict(made), "about": about}, indent=1, ensure_ascii=False)
    parts = [
        f' "{name}": [\n' + ",\n".join(json.dumps(asdict(item)) for item in items) + "\n ]"
        for name, items in (
            ("measured", results.measured),
            ("standings", results.standings),
            ("failed", results.failed),
        )
    ]
    text = head.removesuffix("\n}") + ",\n" + ",\n".join(parts) + "\n}\n"
    (folder / RESULTS_NAME).write_text(text, encoding="utf-8")
