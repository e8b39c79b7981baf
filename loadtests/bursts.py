"""Bursty arrivals: an inter-arrival CV of 13, and 1-second peaks of 26 times the mean rate.

These two are what is published of the burstiest public trace of requests to language models (Azure 2023,
coding). They are matched by three parts, each a Poisson process of its own rate (a Cox process):

- silence and activity in turn, each exponential in length, half of the time each. A cycle's length
  follows from the CV: silences of mean S in cycles of mean C give CV² + 1 = 2 rate S² / C.
- spikes of a second in the active times, one in 15 s on average. Their heights follow a Pareto law from
  twice the mean rate on, cut off so that with the rest a peak is 26 times the mean; most are low, and
  20 minutes hold one of the highest.
- what is left of the mean rate fills the active times.

A peak is the highest second, so few requests meet one: a process that is at 26 times its mean whenever
it is active has the same two figures, and overruns any server most of the time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Offsets = NDArray[np.float64]

CV = 13.0
ACTIVE = 0.5  # of the time
SPIKE_S = 1.0
SPIKE_EVERY_S = 15.0
LOWEST, HIGHEST, STEEPNESS = 2.0, 24.5, 2.0  # of spikes, in mean rates


def bursty(rate: float, duration_s: float, rng: np.random.Generator, *, cv: float = CV) -> Offsets:
    """Draw arrivals: sorted offsets in seconds, `rate * duration_s` of them on average."""
    begins, lengths = _active_times(rate, duration_s, cv, rng)
    heights = rng.permutation(_heights(max(round(duration_s / SPIKE_EVERY_S), 1)))
    spikes = [
        start + SPIKE_S * rng.uniform(size=rng.poisson(height * rate * SPIKE_S))
        for start, height in zip(_within(begins, lengths, len(heights), rng), heights, strict=True)
    ]
    left = max(duration_s - heights.sum() * SPIKE_S, 0.0) * rate
    offsets = np.sort(np.concatenate([*spikes, _within(begins, lengths, rng.poisson(left), rng)]))
    return np.asarray(offsets[offsets < duration_s])


def _heights(count: int) -> Offsets:
    """Evenly spread quantiles of the Pareto law: every draw has its share of high spikes."""
    above = 1 - (np.arange(count) + 0.5) / count
    return np.asarray(np.minimum(LOWEST * above ** (-1 / STEEPNESS), HIGHEST))


def _active_times(
    rate: float, duration_s: float, cv: float, rng: np.random.Generator
) -> tuple[Offsets, Offsets]:
    """When activity begins, and how long it lasts: half of the time on average."""
    cycle_s = (cv**2 + 1) / (2 * rate * (1 - ACTIVE) ** 2)
    cycles = int(2 * duration_s / cycle_s) + 8
    silent = rng.exponential((1 - ACTIVE) * cycle_s, cycles)
    active = rng.exponential(ACTIVE * cycle_s, cycles)
    ends = np.cumsum(silent + active) - silent[0] * rng.uniform()
    begins, ends = np.clip([ends - active, ends], 0.0, duration_s)
    if begins[0] == duration_s:  # a short draw may lie in one silence; it is to have its arrivals
        begins[0], ends[0] = 0.0, duration_s
    return begins, ends - begins


def _within(begins: Offsets, lengths: Offsets, count: int, rng: np.random.Generator) -> Offsets:
    """So many times, spread evenly over the active ones."""
    into = rng.uniform(0.0, lengths.sum(), count)
    before = np.cumsum(lengths) - lengths
    number = np.searchsorted(before, into, side="right") - 1
    return np.asarray(begins[number] + into - before[number])
