"""Discrete events, and cores that jobs share: the clock of the simulator.

Cores are shared by processor sharing: `n` jobs of one thread each on `c` cores all progress at
`min(1, c / n)`. A virtual clock runs at that pace, so a job's end is known on it when the job begins,
whatever comes or goes meanwhile (Kleinrock 1967; as virtual time in fair queueing). Urgent jobs, as of
processes of higher priority, have a core of their own before all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, TypeVar

LEAST_SHARE = 0.05  # of a core, that the others have beside urgent jobs

T = TypeVar("T")
Entry = tuple[
    float, int, Callable[[Any], None], Any
]  # when, in order of entry, what to do with what


class Simulation:
    """Runs what is due, in order of time; of equal times, in order of entry."""

    __slots__ = (
        "_cores",
        "_due_s",
        "_entries",
        "_events",
        "_jobs",
        "_pace",
        "_shown_s",
        "_urgent",
        "_virtual",
        "now_s",
    )

    def __init__(self, *, cores: float) -> None:
        self.now_s = 0.0
        self._cores = cores
        self._events: list[Entry] = []
        self._jobs: list[Entry] = []  # by their ends on the virtual clock
        self._entries = 0
        self._virtual = 0.0  # work, in seconds, that a job present since the start would have had
        self._shown_s = 0.0  # when the virtual clock showed that
        self._urgent = 0
        self._pace = 1.0
        self._due_s = math.inf  # when the first job ends, unless jobs come or go

    def at(self, when_s: float, do: Callable[[T], None], what: T) -> None:
        """Have `do(what)` happen then, or now where that has passed."""
        self._entries += 1
        heappush(self._events, (when_s, self._entries, do, what))

    def compute(self, work_s: float, do: Callable[[T], None], what: T) -> None:
        """Start a job of so much work of one core; `do(what)` follows its end."""
        self._entries += 1
        self._turn()
        heappush(self._jobs, (self._virtual + work_s, self._entries, do, what))
        self._share()

    def compute_first(self, work_s: float, do: Callable[[T], None], what: T) -> None:
        """Start an urgent job."""
        self._turn()
        self._urgent += 1
        self._share()
        self.at(self.now_s + work_s, self._computed_first, (do, what))

    def _computed_first(self, job: tuple[Callable[[T], None], T]) -> None:
        self._turn()
        self._urgent -= 1
        self._share()
        do, what = job
        do(what)

    @property
    def busy(self) -> int:
        """Jobs on the cores."""
        return len(self._jobs)

    def run(self) -> None:
        """Until nothing is left to happen."""
        events, jobs = self._events, self._jobs
        while events or jobs:
            if events and (not jobs or events[0][0] < self._due_s):
                when_s, _, do, what = heappop(events)
                self.now_s = max(when_s, self.now_s)
            else:
                self.now_s = self._due_s
                self._virtual, _, do, what = heappop(jobs)
                self._shown_s = self.now_s
                self._share()
            do(what)

    def _turn(self) -> None:
        """Bring the virtual clock to this moment."""
        self._virtual += (self.now_s - self._shown_s) * self._pace
        self._shown_s = self.now_s

    def _share(self) -> None:
        """Jobs came or went: the pace is another. The virtual clock is at this moment."""
        count = len(self._jobs)
        if not count:
            self._due_s = math.inf
            return
        cores = max(self._cores - self._urgent, LEAST_SHARE)
        self._pace = 1.0 if count <= cores else cores / count
        self._due_s = self.now_s + max(self._jobs[0][0] - self._virtual, 0.0) / self._pace
