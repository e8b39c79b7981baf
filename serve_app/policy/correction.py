"""How far forecasts are off, learned online, per variant, load and size: their 95th percentile and median.

With y = log(actual / forecast), `theta` tracks a quantile of y by stochastic approximation (Robbins and
Monro 1951; as adaptive conformal inference, Gibbs and Candès 2021):

    theta += STEP * (1[y > theta] - over)

For p95 `over` is 0.04, for 0.05 to miss: a request goes where the forecast looks best, which is more often where
it is too low, and after a burst theta follows with a delay. For the median it is a half. That one says whether a
request that p95 does not fit has a chance: while texts queue, many leave in batches of their like, before those
that came first, and the forecast alone was up to twice what half of them took.

A request that timed out or was cancelled after a time u was late by nobody knows how much. Of those
that last longer than u, a share of over / P(y > u) lasts longer than theta (Kaplan and Meier 1958,
"redistribute to the right"), and P is interpolated between the forecast, which half exceed, and theta: for p95
it counts as late in full from p95 on, by a twelfth at the forecast, and a client that hangs up at once says
nothing; for the median it says nothing before the median.

Each bin (load × size) keeps its own deviation from the variant's theta, weighted by how much it has
seen: a sparse bin is the variant's. A bin that is not heard of relaxes to its prior, the spread of the
profile: otherwise a variant that was slow once would never be asked, and never heard of, again.
"""

from __future__ import annotations

import math

MISSES = 0.04  # over p95
HALF = 0.5  # over the median
STEP = 0.04  # one miss raises p95 by 3.8 %; a hit lowers it by 0.16 %
STALE_S = 2.0  # a bin not heard of for so long begins to relax
RELAXES_S = 10.0  # to 1/e of its distance from the prior
SPARSE = 60  # observations at which a bin counts as much as its variant
MOST = math.log(3.0)  # beyond, a variant would not be asked for seconds after a burst
LEAST = math.log(0.8)
LEAST_MEDIAN = math.log(0.2)
LEAST_SPREAD = 1.1


class Correction:
    """Of one quantile of one variant. Not asked for the time: `now_s` comes in."""

    def __init__(
        self, *, prior: float, bins: int, over: float = MISSES, least: float = LEAST
    ) -> None:
        """Nothing is learned yet.

        Args:
            prior: log of the quantile / forecast, until then.
            bins: how many bins forecasts fall into.
            over: the share of outcomes that shall exceed it.
            least: theta falls no lower.
        """
        self._prior = prior
        self._over = over
        self._least = least
        self._shared = self._prior
        self._shared_s = -math.inf  # when it was told something last
        self._deviation = [0.0] * bins
        self._told_s = [-math.inf] * bins
        self._weight = [0.0] * bins
        self._seen = [0] * bins
        self._kept: dict[int, tuple[float, float]] = {}  # bin -> until when, exp(theta)

    @classmethod
    def of_p95(cls, *, spread: float, bins: int) -> Correction:
        """Start from the profile: `spread` is p95 / median of its measurements, 1 at least."""
        return cls(prior=math.log(max(spread, LEAST_SPREAD)), bins=bins)

    @classmethod
    def of_median(cls, *, bins: int) -> Correction:
        """Start from the forecast itself."""
        return cls(prior=0.0, bins=bins, over=HALF, least=LEAST_MEDIAN)

    def factor(self, number: int, now_s: float) -> float:
        """The quantile / forecast, for forecasts in bin `number`; worked out once for all who ask before the next news."""
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
        """The log of the quantile / forecast, for forecasts in bin `number`."""
        shared = self._prior + (self._shared - self._prior) * _fade(now_s - self._shared_s)
        if not self._seen[number]:
            return shared
        fade = _fade(now_s - self._told_s[number])
        theta = shared + self._weight[number] * self._deviation[number] * fade
        return self._within(theta)

    def learn(self, number: int, *, log_ratio: float, now_s: float, is_over: bool = True) -> None:
        """Take one outcome.

        Args:
            number: the forecast's bin.
            log_ratio: log(actual / forecast), or of the time that had passed when a request
                was given up.
            now_s: when it ended.
            is_over: whether it was answered, rather than given up.
        """
        theta = self.theta(number, now_s)
        step = STEP * (self._late(log_ratio, theta, is_over=is_over) - self._over)
        faded = (self._shared - self._prior) * _fade(now_s - self._shared_s)
        self._shared = self._within(self._prior + faded + step)
        self._shared_s = now_s
        deviation = self._deviation[number] * _fade(now_s - self._told_s[number])
        self._deviation[number] = self._within(deviation + step)
        self._told_s[number] = now_s
        self._kept.clear()
        seen = self._seen[number] = self._seen[number] + 1
        self._weight[number] = seen / (seen + SPARSE)

    def _late(self, log_ratio: float, theta: float, *, is_over: bool) -> float:
        """The share of an outcome that counts as over the quantile."""
        if log_ratio > theta:
            return 1.0
        if is_over:
            return 0.0
        if log_ratio <= 0 or self._over >= HALF:
            return self._over  # as many as expected: nothing is learned
        return 2 * self._over * math.pow(1 / (2 * self._over), log_ratio / theta)

    def _within(self, theta: float) -> float:
        return MOST if theta > MOST else self._least if theta < self._least else theta


def _fade(silent_s: float) -> float:
    """What is left of a distance from the prior after so long without news."""
    return 1.0 if silent_s <= STALE_S else math.exp((STALE_S - silent_s) / RELAXES_S)
