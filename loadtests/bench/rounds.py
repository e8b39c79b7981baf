"""Rounds: in each, every subject is started anew, and every row of it measured once in every cell.

Subjects run one at a time, since an idle Ray cluster takes a share of the cores; who comes first changes
from round to round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.medians import rotated
from loadtests.bench.samples import Cell, Failed, Measured, Outcome, Pace, Sample, Standing, Subject
from loadtests.bench.workloads import Workload
from loadtests.errors import LoadTestError

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What all subjects go through."""

    cells: Sequence[Cell]
    workloads: Mapping[str, Workload]  # by name
    rounds: int
    pace: Pace
    folder: Path  # for logs
    tell: Tell  # a line of progress

    def run(self, subjects: Sequence[Subject]) -> Iterator[Outcome]:
        """Measure, and give each outcome as soon as it is there.

        A subject that fails is left out of later rounds.
        """
        left = list(subjects)
        for number in range(self.rounds):
            for subject in rotated(left, number):
                try:
                    yield from self._once(subject, number)
                except (LoadTestError, OSError, ValueError) as error:
                    self.tell(f"{self._head(subject, number)}: {error}")
                    yield Failed(subject.name, str(error))
                    left.remove(subject)

    def _once(self, subject: Subject, number: int) -> Iterator[Measured | Standing]:
        head = self._head(subject, number)
        self.tell(f"{head}: starting")
        with subject.started(self.folder) as started:
            standing = started.standing(number, self.pace)
            self.tell(f"{head}: {told_standing(standing)}")
            yield standing
            for cell, rows in subject.plan(self.cells):
                for row in rotated(rows, number):
                    workload = self.workloads[cell.workload]
                    sample = started.measure(row, workload, cell.clients, self.pace)
                    self.tell(f"{head}: {row}, {cell}: {told(sample)}")
                    yield Measured(round=number, row=row, cell=cell, sample=sample)

    def _head(self, subject: Subject, number: int) -> str:
        return f"round {number + 1}/{self.rounds}, {subject.name}"


def told(sample: Sample) -> str:
    """A sample on a line."""
    if not sample.texts:
        return f"nothing answered: {sample.failures}"
    latency = "" if sample.p50_ms is None else f", p50 {sample.p50_ms:.1f} ms"
    failures = f", failures {sample.failures}" if sample.failures else ""
    return (
        f"{sample.texts_per_s:.0f} texts/s, {sample.cpu_s_per_1000:.2f} CPU-s per 1000"
        f"{latency}{failures}"
    )


def told_standing(standing: Standing) -> str:
    """What it is without load, on a line."""
    idle = "" if standing.idle_cores is None else f", idle {standing.idle_cores:.1%} of a core"
    return f"ready after {standing.ready_s:.1f} s{idle}"
