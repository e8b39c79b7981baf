"""Discrete events, and cores that jobs share: the clock of the simulator.

Cores are shared by processor sharing: `n` jobs of one thread each on `c` cores all progress at
`min(1, c / n)`. A virtual clock runs at that pace, so a job's end is known on it when the job begins,
whatever comes or goes meanwhile (Kleinrock 1967; as virtual time in fair queueing). Urgent jobs, as of
processes of higher priority, have a core of their own before all others.

Engines slow each other beyond their cores: they stream their weights through one cache and one memory. While
two or more engine jobs are there, all jobs progress at `1 / together_pace` of that. How much more three slow each
other than two nobody measured, so it is taken for as much.
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
Job = tuple[float, int, Callable[[Any], None], Any, bool]  # as well, and whether it is an engine's


class Simulation:
    """Runs what is due, in order of time; of equal times, in order of entry."""

    __slots__ = (
        "_cores",
        "_due_s",
        "_engines",
        "_entries",
        "_events",
        "_jobs",
        "_pace",
        "_shown_s",
        "_together_pace",
        "_urgent",
        "_virtual",
        "now_s",
    )

    def __init__(self, *, cores: float, together_pace: float = 1.0) -> None:
        """Nothing is to happen yet.

        Args:
            cores: that all jobs share.
            together_pace: how many times longer engines take while two or more are at work.
        """
        self.now_s = 0.0
        self._cores = cores
        self._together_pace = together_pace
        self._engines = 0  # jobs of engines
        self._events: list[Entry] = []
        self._jobs: list[Job] = []  # by their ends on the virtual clock
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

    def compute(
        self, work_s: float, do: Callable[[T], None], what: T, *, engine: bool = False
    ) -> None:
        """Start a job of so much work of one core, an engine's or not; `do(what)` follows its end."""
        self._entries += 1
        self._turn()
        self._engines += engine
        heappush(self._jobs, (self._virtual + work_s, self._entries, do, what, engine))
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
                self._virtual, _, do, what, engine = heappop(jobs)
                self._shown_s = self.now_s
                self._engines -= engine
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
        if self._engines > 1:
            self._pace /= self._together_pace
        self._due_s = self.now_s + max(self._jobs[0][0] - self._virtual, 0.0) / self._pace
