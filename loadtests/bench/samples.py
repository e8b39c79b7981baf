"""What is measured: rows, cells, and what came of each in each round."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from loadtests.bench.workloads import Workload

IN_PROCESS = 0  # clients of a row that no client asks


@dataclass(frozen=True, slots=True)
class Row:
    """Who is measured."""

    subject: str  # ours, stock, bare, engine, or a peer
    variant: str | None = None  # None: the subject chooses, or has but one
    mode: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.subject, self.variant, self.mode) if part)


@dataclass(frozen=True, slots=True)
class Cell:
    """What it is asked, by how many at once."""

    workload: str
    clients: int

    def __str__(self) -> str:
        return self.workload if self.clients == IN_PROCESS else f"{self.workload} × {self.clients}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What came of a row in a cell."""

    texts: int
    wall_s: float
    cpu_s: float  # of the subject's whole process tree
    requests: int = 0
    failures: dict[str, int] | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    client_cpu_s: float | None = None

    @property
    def texts_per_s(self) -> float | None:
        """Throughput; None where nothing was answered."""
        return self.texts / self.wall_s if self.texts else None

    @property
    def cpu_s_per_1000(self) -> float | None:
        """CPU seconds per 1000 texts; None where nothing was answered."""
        return 1000 * self.cpu_s / self.texts if self.texts else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A sample in its place."""

    round: int
    row: Row
    cell: Cell
    sample: Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a subject is without load, each time that it is started."""

    round: int
    subject: str
    ready_s: float  # from its start to its first answer
    idle_cores: float | None = None  # cores that it uses without requests; None: not looked at
    prepared_s: float | None = None  # what has to run before its start


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long to measure."""

    seconds: float
    warm_s: float
    idle_s: float


class Started(Protocol):
    """A subject that is ready."""

    def standing(self, number: int, pace: Pace) -> Standing:
        """Look at it without load, in the round of that number."""
        ...

    def measure(self, row: Row, workload: Workload, clients: int, pace: Pace) -> Sample:
        """Load it."""
        ...


class Subject(Protocol):
    """What is started to be measured: a server, or engines in processes of their own."""

    @property
    def name(self) -> str: ...

    def plan(self, cells: Sequence[Cell]) -> Sequence[tuple[Cell, Sequence[Row]]]:
        """Of the cells asked for, those that make sense here, each with the rows to measure in it."""
        ...

    def started(self, folder: Path) -> AbstractContextManager[Started]:
        """Start it, with its log in the folder; raises NoServer."""
        ...


@dataclass(frozen=True, slots=True)
class Failed:
    """A subject that could not be measured, and why."""

    subject: str
    why: str


Outcome = Measured | Standing | Failed
