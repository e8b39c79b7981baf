"""When those who are refused in an overload may come back: one after the other, rather than all at once.

A forecast tells when the queue that stands now is gone; if each client comes back then, so do all others. While
many are refused, each is therefore told the next free time of a schedule that lets in `RETURNS` of the rate at
which requests are answered: there is room for it in whatever the server does beside new requests. The longer
the overload, the later the times, up to `MOST_RETRY_S`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

RETURNS = 0.1  # of the rate of answers
RATE_WINDOW_S = 5.0
LEAST_RATE = 1.0  # answers a second, where there are hardly any
LEAST_RETRY_S, MOST_RETRY_S = 1.0, 120.0
JITTER = 0.25


class Returns:
    """The schedule of one router. Times are seconds on the caller's clock."""

    def __init__(self, *, draw: Callable[[], float]) -> None:
        """Nobody was told a time yet.

        Args:
            draw: uniform random numbers from 0 to 1.
        """
        self._draw = draw
        self._rate = 0.0
        self._rate_s = 0.0
        self._given_s = -math.inf  # the last time that was given out

    def answered(self, *, now_s: float) -> None:
        """A request was answered in time."""
        self._rate = self._rate * self._fade(now_s) + 1 / RATE_WINDOW_S
        self._rate_s = now_s

    def next_s(self, *, now_s: float) -> float:
        """Give out the next time: in so many seconds."""
        rate = max(self._rate * self._fade(now_s), LEAST_RATE)
        soonest_s = now_s + LEAST_RETRY_S
        self._given_s = min(
            max(self._given_s + 1 / (RETURNS * rate), soonest_s), now_s + MOST_RETRY_S
        )
        return (self._given_s - now_s) * (1 + JITTER * self._draw())

    def _fade(self, now_s: float) -> float:
        return math.exp((self._rate_s - now_s) / RATE_WINDOW_S)
