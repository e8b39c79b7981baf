"""When too many requests miss, those that asked for nothing get less; hysteresis both ways.

A miss is a request refused for lack of time or answered late. When misses stay above `TRIGGER` for
`WINDOW_S`, the level rises one step; after `CLEAN_S` without a bad window it falls one. At level 1
requests without a hint get the cheapest variant at or above the default floor; each level above takes
that floor one deployed fidelity down. An explicit floor is never touched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

TRIGGER = 0.05
CLEAN = 0.01
FEWEST = 20  # outcomes in a window that say anything
WINDOW_S = 2.0
CLEAN_S = 30.0


class Brownout:
    """The level, from outcomes as they come."""

    def __init__(self, *, floor: float, fidelities: Sequence[float]) -> None:
        """Nothing is wrong yet.

        Args:
            floor: the default one, for requests that bring no hint.
            fidelities: of the deployed variants.
        """
        below = sorted({f for f in fidelities if f < floor}, reverse=True)
        self._floors = (floor, floor, *below)
        self._outcomes: deque[tuple[float, bool]] = deque()
        self._misses = 0
        self._changed_s = 0.0
        self._bad_s = 0.0
        self.level = 0

    @property
    def floor(self) -> float:
        """The default floor at this level."""
        return self._floors[self.level]

    @property
    def miss_share(self) -> float:
        """Of the last window's outcomes."""
        return self._misses / len(self._outcomes) if self._outcomes else 0.0

    def misses(self, *, now_s: float) -> float:
        """The share of the last window's outcomes that missed; 0 where they are too few to say."""
        self.look(now_s=now_s)
        return self.miss_share if len(self._outcomes) >= FEWEST else 0.0

    def tell(self, *, missed: bool, now_s: float) -> None:
        """One outcome."""
        self._outcomes.append((now_s, missed))
        self._misses += missed
        self.look(now_s=now_s)

    def look(self, *, now_s: float) -> None:
        """Let time pass: forget what left the window, and change the level where it is due."""
        outcomes, since_s = self._outcomes, now_s - WINDOW_S
        while outcomes and outcomes[0][0] < since_s:
            self._misses -= outcomes.popleft()[1]
        share = self._misses / len(outcomes) if len(outcomes) >= FEWEST else 0.0
        if share > CLEAN:
            self._bad_s = now_s
        if share > TRIGGER and self._changed_s <= since_s and self.level < len(self._floors) - 1:
            self.level, self._changed_s = self.level + 1, now_s
        elif self.level and now_s - max(self._bad_s, self._changed_s) >= CLEAN_S:
            self.level, self._changed_s = self.level - 1, now_s
