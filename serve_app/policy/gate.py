"""Turns requests away at the door, unread, while the router itself cannot keep up.

A refusal by the brain costs the router nearly what a decision does: the body is read, parsed and tokenised
first. In an overload whose clients ask again, a router can be kept busy by refusing alone, long after the
overload is over (a metastable failure, Bronson et al. 2021). So while its lag stands, and it misses requests
anyway, it turns away a growing share of them for the price of an answer:

    standing  the lag was above the target for INTERVAL_S (a standing queue: CoDel, Nichols and Jacobson 2012)
    share     grows by RISES a second for each time that the lag exceeds the target, while it stands and more
              than MISSES of what is let in is refused or late; else it falls to 1/e in FALLS_S

The target is a part of the tightest budget asked for lately: a lag that all budgets bear is none. Who is turned
away is drawn by lot, and some always come in, so nobody starves; `returns.py` tells each when to come back.
"""

from __future__ import annotations

import math
from collections.abc import Callable

INTERVAL_S = 0.05  # a stall of the host is over by then
SILENT_S = 1.0  # without a request for so long nothing stands
OF_THE_TIGHTEST = 0.25  # of the tightest budget: what a lag may take
LEAST_TARGET_MS, MOST_TARGET_MS = 10.0, 250.0
REMEMBERED_S = 10.0  # a tight budget that nobody asked for again
MISSES = 0.05
RISES = 5.0
STEEPEST = 3.0  # of lag / target - 1
FALLS_S = 0.2
MOST = 0.95  # of requests turned away
OF_NOTE = 0.01  # a smaller share is none


class Gate:
    """Of one router. Times are seconds on the caller's clock."""

    __slots__ = ("_above_since_s", "_asked_s", "_draw", "_share", "_tightest_ms", "_tightest_s")

    def __init__(self, *, draw: Callable[[], float]) -> None:
        """Nothing stands.

        Args:
            draw: uniform random numbers from 0 to 1.
        """
        self._draw = draw
        self._share = 0.0
        self._asked_s = -math.inf
        self._above_since_s = math.inf
        self._tightest_ms = math.inf
        self._tightest_s = 0.0

    @property
    def share(self) -> float:
        """Of requests that are turned away now."""
        return self._share

    @property
    def target_ms(self) -> float:
        """The lag that is borne."""
        return min(max(OF_THE_TIGHTEST * self._tightest_ms, LEAST_TARGET_MS), MOST_TARGET_MS)

    def saw(self, budget_ms: float | None, *, now_s: float) -> None:
        """A request was read: its budget is known."""
        if budget_ms is None:
            return
        if budget_ms <= self._tightest_ms or now_s - self._tightest_s > REMEMBERED_S:
            self._tightest_ms, self._tightest_s = budget_ms, now_s

    def turns_away(self, lag_ms: float, *, miss_share: float, now_s: float) -> bool:
        """Whether a request at the door is turned away.

        Args:
            lag_ms: how long what the router has to do waits for its thread.
            miss_share: of the requests let in lately, those refused for lack of time or answered late.
            now_s: when.
        """
        passed_s = now_s - self._asked_s
        self._asked_s = now_s
        self._move(lag_ms, miss_share, passed_s, now_s)
        return self._share >= OF_NOTE and self._draw() < self._share

    def _move(self, lag_ms: float, miss_share: float, passed_s: float, now_s: float) -> None:
        """Follow the lag."""
        target_ms = self.target_ms
        if lag_ms <= target_ms:
            self._above_since_s = math.inf
        elif self._above_since_s == math.inf or passed_s > SILENT_S:
            self._above_since_s = now_s
        if now_s - self._above_since_s >= INTERVAL_S and miss_share > MISSES:
            steps = min(lag_ms / target_ms - 1, STEEPEST)
            self._share = min(self._share + RISES * steps * min(passed_s, SILENT_S), MOST)
        else:
            self._share *= math.exp(-passed_s / FALLS_S)
