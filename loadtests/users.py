"""Closed loop: how many users there are at which time."""

from __future__ import annotations

import math
from collections.abc import Callable

STEPS = 5
LOW_SHARE = 0.1  # of the users, before a spike and in the trough of a sinus
SPIKE = (0.4, 0.6)  # the part of the run that is the spike

SHAPES: dict[str, Callable[[float], float]] = {  # share of the run that is over -> share of users
    "constant": lambda _: 1.0,
    "ramp": lambda over: over,
    "step": lambda over: (math.floor(over * STEPS) + 1) / STEPS,
    "spike": lambda over: 1.0 if SPIKE[0] <= over < SPIKE[1] else LOW_SHARE,
    "sinus": lambda over: LOW_SHARE + (1 - LOW_SHARE) * (1 - math.cos(4 * math.pi * over)) / 2,
}


def users_at(shape: str, now_s: float, *, users: int, duration_s: float) -> int | None:
    """Count the users of a shape, at least one; None when the run is over."""
    if now_s >= duration_s:
        return None
    return min(max(round(users * SHAPES[shape](now_s / duration_s)), 1), users)
