"""The knee of a ramp: the highest offered load that the server keeps up with, in time.

Offered load is a straight line by construction, so it is fitted to the arrivals: their noise would move
the knee. Judged are feasible requests only, those that an idle server admits. A second of the ramp is
good when `LEAST_WITHIN` of those with a budget were answered within it, and when over `SMOOTH_BINS`
seconds around it answers came back at `LEAST_ACHIEVED` of the rate they were asked for, give or take one.
On a noisy machine a stall is no knee: the knee stands where it puts the fewest bad seconds below it and
good seconds above.
Budgets are judged second by second, as a stall would otherwise spoil the seconds beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtests.measures import budget_counts, due_counts, feasible
from loadtests.records import OK, Columns

BIN_S = 1.0
SMOOTH_BINS = 3
LEAST_ACHIEVED = 0.95
LEAST_WITHIN = 0.99
FORGIVEN = 1
FEWEST_BINS = 5
LEAST_BAD_BINS = 4
COLLAPSED_S = 5
DEFINITION = (
    f"The knee is the highest offered load up to which feasible requests were answered at {LEAST_ACHIEVED:.0%} "
    f"of the rate they were asked at, and {LEAST_WITHIN:.0%} of feasible requests were answered within their budget: judged for each "
    f"second of the ramp (the rate over {SMOOTH_BINS} seconds, give or take {FORGIVEN}), and placed where "
    f"it leaves the fewest bad seconds below it and good seconds above; {LEAST_BAD_BINS} bad ones above it show it."
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A ramp by second, each [seconds]; a share is NaN where no request had a budget."""

    time_s: Floats  # middle of each second, since the epoch
    offered_per_s: Floats  # the fitted line
    achieved_per_s: Floats  # all answers, to feasible requests or not
    within_share: Floats  # of feasible requests with a budget, over SMOOTH_BINS
    good: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """Where a ramp bends."""

    load_per_s: float
    reached: bool  # False: the ramp ended before the server did, and the knee lies above
    below_ramp: bool  # the very start of the ramp was too much
    highest_offered_per_s: float
    highest_achieved_per_s: float

    def __str__(self) -> str:
        if self.below_ramp:
            return f"below {self.load_per_s:.0f} requests/s, where the ramp began"
        if not self.reached:
            return f"above {self.load_per_s:.0f} requests/s, where the ramp ended"
        return f"{self.load_per_s:.0f} requests/s"


def curve(ramp: Columns) -> Curve | None:
    """The rows of one ramp by second; None when it is too short to tell anything."""
    if not len(ramp):
        return None
    start_s = ramp.intended_s.min()
    bins = int((ramp.intended_s.max() - start_s) / BIN_S)
    if bins < FEWEST_BINS:
        return None
    edges = start_s + BIN_S * np.arange(bins + 1)
    time_s = edges[:-1] + BIN_S / 2
    arrivals = _count(ramp.intended_s, edges)
    slope, base = np.polyfit(time_s - start_s, arrivals / BIN_S, 1)
    offered = np.maximum(slope * (time_s - start_s) + base, 0.0)
    asked = _smooth(due_counts(ramp, edges))
    answered = _smooth(_count(_answered_s(feasible(ramp)), edges))
    due, missed = budget_counts(ramp, edges)
    kept_up = answered >= LEAST_ACHIEVED * asked - FORGIVEN
    in_time = missed <= (1 - LEAST_WITHIN) * due
    seconds = _smooth(np.full(bins, BIN_S))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.clip(1 - _smooth(missed) / _smooth(due), 0, 1)
    return Curve(
        time_s=time_s,
        offered_per_s=offered,
        achieved_per_s=_smooth(_count(_answered_s(ramp), edges)) / seconds,
        within_share=share,
        good=kept_up & in_time,
    )


def find_knee(seconds: Curve) -> Knee:
    """The split with the fewest bad seconds below and good ones above; the lower one of equals."""
    good = seconds.good
    bad_below = np.concatenate([[0], np.cumsum(~good)])
    good_above = good.sum() - np.concatenate([[0], np.cumsum(good)])
    split = int(np.argmin(bad_below + good_above))
    reached = int((~good[split:]).sum()) >= LEAST_BAD_BINS
    load = seconds.offered_per_s[max(split - 1, 0)] if reached else seconds.offered_per_s.max()
    return Knee(
        load_per_s=float(load),
        reached=reached,
        below_ramp=reached and split == 0,
        highest_offered_per_s=float(seconds.offered_per_s.max()),
        highest_achieved_per_s=float(seconds.achieved_per_s.max()),
    )


def collapsed(ramp: Columns, *, now_s: float, share: float = 0.7) -> bool:
    """Whether less than a share of the feasible requests was answered in each of the last seconds.

    The last second before `now_s` is left out: its requests may still be under way.
    """
    edges = now_s - 1 - COLLAPSED_S + np.arange(COLLAPSED_S + 1, dtype=np.float64)
    asked, answered = due_counts(ramp, edges), _count(_answered_s(feasible(ramp)), edges)
    return bool(len(ramp) and ramp.intended_s.min() < edges[0] and (answered < share * asked).all())


def _count(times_s: Floats, edges: Floats) -> Floats:
    return np.histogram(times_s, edges)[0].astype(np.float64)


def _answered_s(rows: Columns) -> Floats:
    finished_s: Floats = rows.finished_s[rows.status == OK]
    return finished_s


def _smooth(values: Floats) -> Floats:
    """Sums over `SMOOTH_BINS` around each; fewer at the ends."""
    sums: Floats = np.convolve(values, np.ones(SMOOTH_BINS), mode="same")
    return sums
