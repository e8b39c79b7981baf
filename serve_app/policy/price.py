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


def moved(per_token: float, wait_ms: float, passed_s: float) -> float:
    """The price of a token now, `LEAST` for none.

    Args:
        per_token: what it was at the last look.
        wait_ms: the forecast wait of the queue.
        passed_s: since the last look.
    """
    if passed_s > FORGOTTEN_S:
        return LEAST
    drift = wait_ms / TARGET_WAIT_MS - 1
    per_token *= exp(GAIN * passed_s * (drift if drift < STEEPEST else STEEPEST))
    return LEAST if per_token <= LEAST else per_token if per_token < MOST else MOST
