"""Bursty arrivals: an inter-arrival CV of 13, and 1-second peaks of 26 times the mean rate.

A Markov-modulated Poisson process of two states (Fischer and Meier-Hellstern 1993, "The Markov-
modulated Poisson process (MMPP) cookbook"). In a burst, arrivals come at 26 times the mean rate.
Bursts last a second on average, and longer at rates so low that the CV would not be reached. The
rate between bursts is then the one that gives the CV; it is about a hundredth of the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Offsets = NDArray[np.float64]

BURST_FACTOR = 26.0
CV = 13.0
LEAST_BURST_S = 1.0
LEAST_ARRIVALS_IN_A_MEAN_BURST = 5 * BURST_FACTOR
SPARE_CYCLES = 40
BISECTIONS = 60


def bursty(rate: float, duration_s: float, rng: np.random.Generator, *, cv: float = CV) -> Offsets:
    """Draw arrivals in bursts: sorted offsets in seconds, about `rate * duration_s` of them.

    The window with the mean rate that was asked for is cut out of a longer draw: a short stretch
    of such traffic may as well have no burst at all. Below a minute, one burst is most of it.
    """
    process = _Mmpp.fit(rate, cv)
    cycle_s = process.burst_s + process.between_s
    horizon_s = duration_s + SPARE_CYCLES * cycle_s
    offsets = process.draw(horizon_s, rng)
    starts = np.arange(0.0, horizon_s - duration_s, min(process.burst_s, duration_s) / 4)
    counts = np.searchsorted(offsets, starts + duration_s) - np.searchsorted(offsets, starts)
    start = starts[int(np.argmin(np.abs(counts - rate * duration_s)))]
    return np.asarray(offsets[(offsets >= start) & (offsets < start + duration_s)] - start)


@dataclass(frozen=True, slots=True)
class _Mmpp:
    burst_rate: float  # arrivals a second
    base_rate: float
    burst_s: float  # mean lengths
    between_s: float

    @classmethod
    def fit(cls, rate: float, cv: float) -> _Mmpp:
        """Find the base rate that gives the CV: the lower it is, the higher the CV."""
        burst_s = max(LEAST_BURST_S, LEAST_ARRIVALS_IN_A_MEAN_BURST / (BURST_FACTOR * rate))
        low, high = 0.0, rate
        for _ in range(BISECTIONS):
            base = (low + high) / 2
            if cls._with(rate, base, burst_s).cv > cv:
                low = base
            else:
                high = base
        return cls._with(rate, high, burst_s)

    @classmethod
    def _with(cls, rate: float, base: float, burst_s: float) -> _Mmpp:
        share = (rate - base) / (BURST_FACTOR * rate - base)  # of the time in bursts
        return cls(BURST_FACTOR * rate, base, burst_s, burst_s * (1 - share) / max(share, 1e-12))

    @property
    def cv(self) -> float:
        """Of the times between arrivals, from the moments of the Markovian arrival process."""
        leave, enter = 1 / self.burst_s, 1 / self.between_s
        rates = np.array([self.burst_rate, self.base_rate])
        hidden = np.array([[-leave, leave], [enter, -enter]]) - np.diag(rates)
        at_arrival = np.array([enter, leave]) * rates
        at_arrival /= at_arrival.sum()
        once = np.linalg.solve(-hidden, np.ones(2))
        mean, second = at_arrival @ once, 2 * at_arrival @ np.linalg.solve(-hidden, once)
        return float(np.sqrt(second / mean**2 - 1))

    def draw(self, horizon_s: float, rng: np.random.Generator) -> Offsets:
        """Draw the arrivals of so many seconds."""
        switches, now_s = [0.0], 0.0
        while now_s < horizon_s:
            in_burst = len(switches) % 2 == 0
            now_s += rng.exponential(self.burst_s if in_burst else self.between_s)
            switches.append(min(now_s, horizon_s))
        lengths = np.diff(switches)
        rates = np.where(np.arange(len(lengths)) % 2, self.burst_rate, self.base_rate)
        counts = rng.poisson(rates * lengths)
        starts = np.repeat(switches[:-1], counts)
        return np.sort(starts + rng.uniform(size=len(starts)) * np.repeat(lengths, counts))
