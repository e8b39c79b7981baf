"""An online 95th percentile of how far forecasts are off, per variant, load and size.

With y = log(actual / forecast median), `theta` tracks the 95th percentile of y by stochastic
approximation (Robbins and Monro 1951; as adaptive conformal inference, Gibbs and Candès 2021):

    theta += STEP * (1[y > theta] - MISSES)

MISSES is 0.04, for 0.05 to miss: a request goes where the forecast looks best, which is more often where it is
too low, and after a burst theta follows with a delay.

A request that timed out or was cancelled after a time u was late by nobody knows how much. Of those
that last longer than u, a share of MISSES / P(y > u) lasts longer than theta (Kaplan and Meier 1958,
"redistribute to the right"), and P is interpolated between the median and p95: so it counts as late in
full from p95 on, by a twelfth at the median, and a client that hangs up at once says nothing.

Each bin (load × size) keeps its own deviation from the variant's theta, weighted by how much it has
seen: a sparse bin is the variant's. A bin that is not heard of relaxes to its prior, the spread of the
profile: otherwise a variant that was slow once would never be asked, and never heard of, again.
"""

from __future__ import annotations

import math

MISSES = 0.04
STEP = 0.04  # one miss raises p95 by 3.8 %; a hit lowers it by 0.16 %
STALE_S = 2.0  # a bin not heard of for so long begins to relax
RELAXES_S = 10.0  # to 1/e of its distance from the prior
SPARSE = 60  # observations at which a bin counts as much as its variant
MOST = math.log(3.0)  # beyond, a variant would not be asked for seconds after a burst
LEAST = math.log(0.8)
LEAST_SPREAD = 1.1


class Correction:
    """Of one variant. Not asked for the time: `now_s` comes in."""

    def __init__(self, *, spread: float, bins: int) -> None:
        """Start from the profile.

        Args:
            spread: p95 / median of the profile's measurements, 1 at least.
            bins: how many bins forecasts fall into.
        """
        self._prior = math.log(max(spread, LEAST_SPREAD))
        self._shared = self._prior
        self._shared_s = -math.inf  # when it was told something last
        self._deviation = [0.0] * bins
        self._told_s = [-math.inf] * bins
        self._weight = [0.0] * bins
        self._seen = [0] * bins
        self._kept: dict[int, tuple[float, float]] = {}  # bin -> until when, exp(theta)

    def factor(self, number: int, now_s: float) -> float:
        """p95 / median for forecasts in bin `number`; worked out once for all who ask before the next news."""
        kept = self._kept.get(number)
        if kept is not None and now_s <= kept[0]:
            return kept[1]
        factor = math.exp(self.theta(number, now_s))
        until_s = self._shared_s
        if self._seen[number] and self._told_s[number] < until_s:
            until_s = self._told_s[number]
        self._kept[number] = until_s + STALE_S, factor
        return factor

    def theta(self, number: int, now_s: float) -> float:
        """The log of p95 / median for forecasts in bin `number`."""
        shared = self._prior + (self._shared - self._prior) * _fade(now_s - self._shared_s)
        if not self._seen[number]:
            return shared
        fade = _fade(now_s - self._told_s[number])
        theta = shared + self._weight[number] * self._deviation[number] * fade
        return MOST if theta > MOST else LEAST if theta < LEAST else theta

    def learn(self, number: int, *, log_ratio: float, now_s: float, is_over: bool = True) -> None:
        """Take one outcome.

        Args:
            number: the forecast's bin.
            log_ratio: log(actual / forecast median), or of the time that had passed when a request
                was given up.
            now_s: when it ended.
            is_over: whether it was answered, rather than given up.
        """
        theta = self.theta(number, now_s)
        step = STEP * (_late(log_ratio, theta, is_over=is_over) - MISSES)
        faded = (self._shared - self._prior) * _fade(now_s - self._shared_s)
        self._shared = _within(self._prior + faded + step)
        self._shared_s = now_s
        deviation = self._deviation[number] * _fade(now_s - self._told_s[number])
        self._deviation[number] = _within(deviation + step)
        self._told_s[number] = now_s
        self._kept.clear()
        seen = self._seen[number] = self._seen[number] + 1
        self._weight[number] = seen / (seen + SPARSE)


def _late(log_ratio: float, theta: float, *, is_over: bool) -> float:
    """The share of an outcome that counts as over p95."""
    if log_ratio > theta:
        return 1.0
    if is_over:
        return 0.0
    if log_ratio <= 0:
        return MISSES  # as many as expected: nothing is learned
    return 2 * MISSES * math.pow(1 / (2 * MISSES), log_ratio / theta)


def _within(theta: float) -> float:
    return min(max(theta, LEAST), MOST)


def _fade(silent_s: float) -> float:
    """What is left of a distance from the prior after so long without news."""
    return 1.0 if silent_s <= STALE_S else math.exp((STALE_S - silent_s) / RELAXES_S)
