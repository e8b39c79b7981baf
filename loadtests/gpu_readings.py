"""What `python -m loadtests gpu` finds: readings in sections that have a time each, and why some have none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

Label = str | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One number."""

    what: str  # as "tokens/s"
    value: float
    of: Mapping[str, Label] = field(default_factory=dict)  # shape, length, batch, engine, ...

    @property
    def told(self) -> str:
        labels = " ".join(f"{key}={value}" for key, value in self.of.items())
        return f"{self.what:<24} {self.value:>14.6g}  {labels}"


class Skip(Exception):
    """A section cannot run here; the message says why."""


class Deadline:
    """The seconds that are left of a budget."""

    def __init__(self, budget_s: float, *, now_s: Callable[[], float] = time.perf_counter) -> None:
        self._now_s = now_s
        self._end_s = now_s() + budget_s

    @property
    def left_s(self) -> float:
        return max(0.0, self._end_s - self._now_s())


Measure = Callable[[Deadline], Iterator[Reading]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Readings of one theme; `measure` yields them, the most important first."""

    name: str
    budget_s: float
    measure: Measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a section."""

    name: str
    seconds: float
    readings: tuple[Reading, ...]
    ended: str | None  # why it has no readings, or no more; None: it is whole


def run_sections(
    sections: list[Section],
    *,
    total_s: float,
    say: Callable[[str], None],
    now_s: Callable[[], float] = time.perf_counter,
) -> list[Outcome]:
    """Run sections in order, each within its own time and all within the total.

    A reading under way is finished; none begins after the deadline. One section's failure ends none of
    the others.
    """
    whole = Deadline(total_s, now_s=now_s)
    return [_outcome(section, whole, say=say, now_s=now_s) for section in sections]


def _outcome(
    section: Section, whole: Deadline, *, say: Callable[[str], None], now_s: Callable[[], float]
) -> Outcome:
    started_s = now_s()
    readings: list[Reading] = []
    ended: str | None = None
    deadline = Deadline(min(section.budget_s, whole.left_s), now_s=now_s)
    say(f"== {section.name}")
    try:
        found = section.measure(deadline)
        while deadline.left_s > 0:
            reading = next(found, None)
            if reading is None:
                break
            readings.append(reading)
            say(reading.told)
        else:
            ended = "out of time"
    except Skip as reason:
        ended = f"skipped: {reason}"
    except Exception as error:  # whatever a kernel raises must not cost the other sections
        ended = f"failed: {type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"
    if ended:
        say(ended)
    return Outcome(
        name=section.name, seconds=now_s() - started_s, readings=tuple(readings), ended=ended
    )
