"""Rounds: order, what fails, and what an interruption leaves."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.bench.rounds import Course
from loadtests.bench.samples import Cell, Failed, Measured, Pace, Row, Sample, Standing
from loadtests.bench.workloads import Workload
from loadtests.errors import NoServer

PACE = Pace(seconds=1, warm_s=0, idle_s=0)
CELLS = (Cell("query", 1), Cell("query", 16))


@dataclass
class Double:
    """A subject that writes down what it is asked; it may not start in a round."""

    name: str
    diary: list[str]
    fails_in: int | None = None
    running: list[str] = field(default_factory=list)
    starts: int = 0

    def plan(self, cells: Sequence[Cell]) -> Sequence[tuple[Cell, Sequence[Row]]]:
        return [(cell, (Row(self.name, "a"), Row(self.name, "b"))) for cell in cells]

    @contextmanager
    def started(self, folder: Path) -> Iterator["Double"]:
        del folder
        self.starts += 1
        if self.starts - 1 == self.fails_in:
            raise NoServer("it did not start")
        assert not self.running
        self.running.append(self.name)
        yield self
        self.running.remove(self.name)

    def standing(self, number: int, pace: Pace) -> Standing:
        del pace
        return Standing(round=number, subject=self.name, ready_s=1.0)

    def measure(self, row: Row, workload: Workload, clients: int, pace: Pace) -> Sample:
        del workload, pace
        self.diary.append(f"{row} {clients}")
        return Sample(texts=1, wall_s=1.0, cpu_s=0.5)


def _course(rounds: int, said: list[str]) -> Course:
    return Course(
        cells=CELLS,
        workloads={"query": Workload("query", (("a",),))},
        rounds=rounds,
        pace=PACE,
        folder=Path(),
        tell=said.append,
    )


def test_every_row_is_measured_once_a_round_in_turn() -> None:
    """Two rounds: each subject, and each row of it, is first once; one subject runs at a time."""
    diary, running, said = [], [], []
    subjects = [Double(name, diary, running=running) for name in ("x", "y")]
    outcomes = list(_course(2, said).run(subjects))
    assert diary == [
        *("x a 1", "x b 1", "x a 16", "x b 16", "y a 1", "y b 1", "y a 16", "y b 16"),
        *("y b 1", "y a 1", "y b 16", "y a 16", "x b 1", "x a 1", "x b 16", "x a 16"),
    ]
    assert sum(isinstance(o, Standing) for o in outcomes) == 4
    assert sum(isinstance(o, Measured) for o in outcomes) == 16
    assert any("round 2/2, y: y b, query × 16: 1 texts/s" in line for line in said)


def test_one_that_fails_is_told_and_left_out() -> None:
    """It keeps what was measured before, and the others go on."""
    diary: list[str] = []
    broken, sound = Double("x", diary, fails_in=1), Double("y", diary)
    outcomes = list(_course(3, []).run([broken, sound]))
    assert [o for o in outcomes if isinstance(o, Failed)] == [Failed("x", "it did not start")]
    assert (broken.starts, sound.starts) == (2, 3)
    assert sum(isinstance(o, Measured) and o.row.subject == "x" for o in outcomes) == 4


def test_what_was_measured_is_given_at_once() -> None:
    """Whoever stops in the middle has it, and the subject is stopped."""
    subject = Double("x", [])
    outcomes = _course(1, []).run([subject])
    assert [type(next(outcomes)) for _ in range(2)] == [Standing, Measured]
    outcomes.close()
    assert len(subject.diary) == 1
