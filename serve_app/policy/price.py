"""What a token costs others while a variant's queue stands, so that a queue is kept for many short texts.

A long text makes all behind it wait. While a queue stays longer than `TARGET_WAIT_MS`, its price per
token grows, and it falls when the queue is short; a request goes where its worth exceeds its price most:

    d(log price) / dt = GAIN * (wait / TARGET_WAIT_MS - 1)
    worth             = 3 + normalised fidelity      (an answer at all, and how good it is)

So in a crowd long texts leave the best variant first, and are the first to be refused by all. It is a
queue-driven dual price (drift plus penalty, Neely 2010; a standing queue as the signal, CoDel, Nichols
and Jacobson 2012). In quiet times the price is nothing.
"""

from __future__ import annotations

from math import exp

TARGET_WAIT_MS = 10.0
GAIN = 5.0  # a second
STEEPEST = 6.0  # of wait / target - 1
FORGOTTEN_S = 0.5  # without a look at the queue, a price says nothing
LEAST = 1 / 2000  # a token; below, it counts as nothing
MOST = 1 / 8


class Price:
    """Of one variant's queue."""

    __slots__ = ("_at_s", "_per_token")

    def __init__(self) -> None:
        self._per_token = LEAST
        self._at_s = 0.0

    def look(self, wait_ms: float, now_s: float) -> float:
        """Take the forecast wait of a queue now; returns the price of a token."""
        passed_s = now_s - self._at_s
        self._at_s = now_s
        if passed_s > FORGOTTEN_S:
            self._per_token = LEAST
            return 0.0
        drift = wait_ms / TARGET_WAIT_MS - 1
        per_token = self._per_token * exp(
            GAIN * passed_s * (drift if drift < STEEPEST else STEEPEST)
        )
        if per_token <= LEAST:
            self._per_token = LEAST
            return 0.0
        self._per_token = per_token = per_token if per_token < MOST else MOST
        return per_token
