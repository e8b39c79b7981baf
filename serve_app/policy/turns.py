"""Whose turn it is: in which order texts leave for the cores, and how long one waits for its turn.

    turn = when it was let in + place + AGES * own time

The own time is what the text takes an engine, so short texts go first: a query does not wait for the documents
of others, and the more faithful variant gives way to the cheaper. The place is what the budget leaves (`PLACES_MS`,
rounded down): who can wait does. A turn never moves, and whoever comes later has a later one but for at most the
longest place and `AGES` times the own time, so that none starves.

It is weighted shortest job first, aged by arrival (Schrage 1968), over places that earliest deadline first would
give. `docs/routing.md` has what other orders did.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right

AGES = 20.0
PLACES_MS = (0.0, 50.0, 100.0, 250.0, 500.0, 1000.0)
# Of what a text takes where engines are not in each other's way: faster it hardly ever is.
BEST_CASE = 0.8


def place_of(left_ms: float) -> int:
    """The last place in `PLACES_MS` that so much time allows."""
    return max(bisect_right(PLACES_MS, left_ms) - 1, 0)


def turn_after_ms(*, place_ms: float, work_ms: float) -> float:
    """How long after it was let in it is the turn of a text that takes `work_ms`."""
    return place_ms + AGES * work_ms


def turn_s(now_s: float, *, place_ms: float, work_ms: float) -> float:
    """When it is the turn of a text that takes `work_ms` and was let in now."""
    return now_s + turn_after_ms(place_ms=place_ms, work_ms=work_ms) / 1000


def with_overtakers_ms(wait_ms: float, *, load: float, turns_ms: float, typical_ms: float) -> float:
    """A wait, grown by those who come meanwhile and have an earlier turn.

    Whoever comes t later goes first if its own turn is less than `turns_ms - t` after it came. Where those are
    exponentially distributed, all who do so are as many as come in turns - typical * (1 - exp(-turns / typical)).
    Those who come when the wait is over do not matter: it is no longer than a queue's in which all go first.

    Args:
        wait_ms: for what is there already.
        load: work that comes / what can be done, in the same time.
        turns_ms: until the turn of who waits, as it comes.
        typical_ms: the same of others, the mean by their work.
    """
    overtaken_ms = max(turns_ms + typical_ms * math.expm1(-turns_ms / typical_ms), 0.0)
    grown_ms = wait_ms + load * overtaken_ms
    return min(grown_ms, wait_ms / (1 - load)) if load < 1 else grown_ms


def can_make_it(left_ms: float, *, alone_ms: float) -> bool:
    """Whether a text that takes `alone_ms` may still be in time. Others need the cores that it does not."""
    return BEST_CASE * alone_ms < left_ms


class Line:
    """What waits for a number of cores, or for the streams of one variant, by turn; and what they run."""

    __slots__ = ("_ends_s", "_rest", "_rest_s", "_turns_s", "_works_ms", "work_ms")

    def __init__(self) -> None:
        self._turns_s: list[float] = []
        self._works_ms: list[float] = []
        self.work_ms = 0.0  # of all that waits
        self._ends_s: dict[object, float] = {}
        self._rest: tuple[float, float] = (0.0, 0.0)  # of what runs: the sum, and the least
        self._rest_s = math.nan  # as of when

    def __len__(self) -> int:
        return len(self._turns_s)

    def add(self, turn_s: float, work_ms: float) -> None:
        """A text waits from now on."""
        at = bisect_right(self._turns_s, turn_s)
        self._turns_s.insert(at, turn_s)
        self._works_ms.insert(at, work_ms)
        self.work_ms += work_ms

    def remove(self, turn_s: float, work_ms: float) -> None:
        """One that was added waits no longer."""
        at = bisect_left(self._turns_s, turn_s)
        while self._works_ms[at] != work_ms:
            at += 1
        del self._turns_s[at], self._works_ms[at]
        self.work_ms = self.work_ms - work_ms if self._turns_s else 0.0

    def begin(self, batch: object, end_s: float) -> None:
        """A batch runs, and is expected back then."""
        self._ends_s[batch] = end_s
        self._rest_s = math.nan

    def end(self, batch: object) -> None:
        """It is back."""
        del self._ends_s[batch]
        self._rest_s = math.nan

    def last_end_s(self, now_s: float) -> float:
        """When the last of the running batches is expected back."""
        return max(self._ends_s.values(), default=now_s)

    def ahead_ms(self, turn_s: float) -> float:
        """Work that waits and has no later turn."""
        turns_s = self._turns_s
        if not turns_s or turns_s[0] > turn_s:
            return 0.0
        return sum(self._works_ms[: bisect_right(turns_s, turn_s)])

    def wait_ms(self, ahead_ms: float, *, now_s: float, width: int) -> float:
        """How long a text with so much work ahead of it would wait if none came meanwhile.

        Args:
            ahead_ms: at the pace at which it runs.
            now_s: when.
            width: batches that run side by side.
        """
        if not ahead_ms and len(self._ends_s) < width:
            return 0.0
        if self._rest_s != now_s:
            # A batch that should be done by now will take as long again as it is late.
            rests_ms = [abs(end_s - now_s) * 1000 for end_s in self._ends_s.values()]
            self._rest, self._rest_s = (sum(rests_ms), min(rests_ms, default=0.0)), now_s
        total_ms, least_ms = self._rest
        return (ahead_ms + total_ms) / width if ahead_ms else least_ms
