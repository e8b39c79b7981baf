"""Sections within their time, failures that cost only themselves, and the table that follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from loadtests.gpu_readings import Deadline, Outcome, Reading, Section, Skip, run_sections


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _section(
    name: str, clock: Clock, *, takes_s: float, readings: int, budget_s: float = 10
) -> Section:
    def measure(_: Deadline) -> Iterator[Reading]:
        for number in range(readings):
            clock.s += takes_s
            yield Reading(what="number", value=number, of={"section": name})

    return Section(name=name, budget_s=budget_s, measure=measure)


def _run(sections: list[Section], clock: Clock, total_s: float = 100) -> list[Outcome]:
    return run_sections(sections, total_s=total_s, say=lambda _: None, now_s=clock)


def test_a_section_ends_with_its_budget(clock: Clock) -> None:
    """The reading under way is kept, none begins after it, and the next section has its own time."""
    first, second = _run(
        [
            _section("long", clock, takes_s=4, readings=9),
            _section("short", clock, takes_s=1, readings=2),
        ],
        clock,
    )
    assert (len(first.readings), first.ended, first.seconds) == (3, "out of time", 12)
    assert (len(second.readings), second.ended) == (2, None)


def test_all_sections_end_with_the_total(clock: Clock) -> None:
    """Ten minutes are ten minutes: what comes last has no readings, and says so."""
    sections = [_section(str(n), clock, takes_s=3, readings=3) for n in range(3)]
    found = _run(sections, clock, total_s=10)
    assert [len(outcome.readings) for outcome in found] == [3, 1, 0]
    assert [outcome.ended for outcome in found] == [None, "out of time", "out of time"]
    assert clock.s <= 10 + 3


def _raising(error: Exception) -> Callable[[Deadline], Iterator[Reading]]:
    def measure(_: Deadline) -> Iterator[Reading]:
        yield Reading(what="before", value=1.0)
        raise error

    return measure


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (Skip("no checkpoint"), "skipped: no checkpoint"),
        (RuntimeError("CUDA error:\nmore"), "failed: RuntimeError: CUDA error:"),
        (ValueError(), "failed: ValueError: -"),
    ],
)
def test_what_ends_a_section_is_told_and_ends_no_other(
    clock: Clock, error: Exception, ended: str
) -> None:
    """Readings from before are kept, the reason is one line, and the next section runs."""
    said: list[str] = []
    sections = [
        Section(name="broken", budget_s=5, measure=_raising(error)),
        _section("whole", clock, takes_s=1, readings=1),
    ]
    broken, whole = run_sections(sections, total_s=50, say=said.append, now_s=clock)
    assert ([r.what for r in broken.readings], broken.ended) == (["before"], ended)
    assert whole.ended is None
    assert ended in said
