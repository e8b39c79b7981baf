"""The largest value that a fluid of requests can have from limited resources: dual prices, by descent.

Requests `i` bring `value[v, i]` when variant `v` serves them. That takes `work_ms[v, i]` of the variant's
engine and `side_ms[v, i]` of the cores beside it, in any portions, in the slots of the request's window.
With a price for each resource and slot, no plan is worth more than

    g(prices) = Σ_i max(0, max_v(value - work · min_window(core + engines + engine_v)
                                       - side · min_window(core)))  +  Σ prices · capacity

(weak duality: each term is what a request would gain that pays for what it uses, and the capacities are
all that can be paid for). That holds whatever the prices are, so it does not matter how they are found,
only how tight it gets. They are found on long slots first, then on ever shorter ones, with requests of
like size and equal window as one: minima become soft (an entropy of falling temperature), and Adam
(Kingma and Ba 2015) follows the gradient, which is capacity less load. The soft plan, cut down where
it overloads a slot, is a plan: its value tells how far from the optimum the prices can be at most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CORES, TOGETHER, ENGINES = 0, 1, 2  # rows of prices and capacities
LEVELS = ((16, 100), (4, 100), (1, 100))  # how many slots are one, and the steps taken with them
LOOKS_EVERY = 10
TOLERANCE = 2e-3  # of the value: closer need prices not be
SIZE_STEP = 1.2  # requests whose work differs by less are of like size
WARM, COLD = 0.03, 0.002  # temperatures, in values
RATE, RATE_FALLS_TO = 0.1, 0.01  # step, in typical prices; and its share at the end of a level
MOMENTUM, SCALE_MEMORY = 0.9, 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is asked for, and what there is."""

    value: Floats  # (variants, requests); negative where a variant cannot serve a request
    work_ms: Floats  # (variants, requests)
    side_ms: Floats  # (variants, requests)
    count: Floats  # (requests,): how many each stands for
    first: Ints  # (requests,): the window's slots, both included
    last: Ints
    capacity_ms: Floats  # (2 + variants, slots): cores, all engines together, each engine

    def coarser(self, factor: int) -> Problem:
        """So many slots as one: windows only grow."""
        rows, slots = self.capacity_ms.shape
        padded = np.zeros((rows, -(-slots // factor) * factor))
        padded[:, :slots] = self.capacity_ms
        return replace(
            self,
            first=self.first // factor,
            last=self.last // factor,
            capacity_ms=padded.reshape(rows, -1, factor).sum(2),
        )

    def bundled(self) -> Problem:
        """Requests of equal window and like size, served by the same variants, as their mean."""
        size = np.log(np.maximum(self.work_ms.min(0), 1e-9)) / np.log(SIZE_STEP)
        able = (self.value >= 0).T @ (1 << np.arange(len(self.value)))
        keys = np.stack([self.first, self.last, np.floor(size).astype(np.int64), able])
        _, member, inverse = np.unique(keys, axis=1, return_index=True, return_inverse=True)
        bundle = inverse.reshape(-1)
        count = np.bincount(bundle, self.count).astype(np.float64)

        def mean(rows: Floats) -> Floats:
            return np.stack([np.bincount(bundle, row * self.count) / count for row in rows])

        return replace(
            self,
            value=mean(self.value),
            work_ms=mean(self.work_ms),
            side_ms=mean(self.side_ms),
            count=count,
            first=self.first[member],
            last=self.last[member],
        )


class Windows:
    """The distinct windows of a problem's requests, slot by slot."""

    def __init__(self, problem: Problem) -> None:
        slots = problem.capacity_ms.shape[1]
        distinct, self.of_request = np.unique(
            problem.first * slots + problem.last, return_inverse=True
        )
        first, last = np.divmod(distinct, slots)
        lengths = last - first + 1
        self.count = len(distinct)
        self._starts = np.cumsum(lengths) - lengths
        self.owner = np.repeat(np.arange(self.count), lengths)
        self.slot = np.arange(lengths.sum()) - np.repeat(self._starts - first, lengths)

    def least(self, entries: Floats) -> Floats:
        """Of each window: (rows, entries) to (rows, windows)."""
        return np.minimum.reduceat(entries, self._starts, axis=1)

    def total(self, entries: Floats) -> Floats:
        """Of each window: (rows, entries) to (rows, windows)."""
        return np.add.reduceat(entries, self._starts, axis=1)


def _paid(prices: Floats) -> Floats:
    """What a millisecond costs in each slot: of each variant's engine, and last of the cores alone."""
    return np.concatenate(
        [prices[CORES] + prices[TOGETHER] + prices[ENGINES:], prices[CORES : CORES + 1]]
    )


def dual(problem: Problem, prices: Floats, windows: Windows | None = None) -> float:
    """Of any prices of at least zero, g: no plan has a greater value."""
    windows = windows or Windows(problem)
    least = windows.least(_paid(prices).take(windows.slot, axis=1))
    least = least.take(windows.of_request, axis=1)
    gain = problem.value - problem.work_ms * least[:-1] - problem.side_ms * least[-1]
    return float(
        problem.count @ np.maximum(gain.max(0), 0.0) + (prices * problem.capacity_ms).sum()
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """What requests would do at given prices."""

    chosen: Floats  # (variants, requests): how many of each go where
    share: Floats  # (variants + 1, entries): which part of the work is done in which slot
    engines_ms: Floats  # (variants, slots)
    side_ms: Floats  # (slots,)

    @property
    def load_ms(self) -> Floats:
        """On each resource in each slot."""
        together = self.engines_ms.sum(0)
        return np.concatenate([[together + self.side_ms], [together], self.engines_ms])

    def value(self, problem: Problem, windows: Windows) -> float:
        """Of what remains when overloaded slots turn away what they cannot do."""
        capacity_ms = problem.capacity_ms

        def fits(load_ms: Floats, limit_ms: Floats) -> Floats:
            fit: Floats = np.minimum(1.0, limit_ms / np.maximum(load_ms, 1e-12))
            return fit

        part = fits(self.engines_ms, capacity_ms[ENGINES:])
        part *= fits((self.engines_ms * part).sum(0), capacity_ms[TOGETHER])
        cores = fits((self.engines_ms * part).sum(0) + self.side_ms, capacity_ms[CORES])
        kept = np.concatenate([part * cores, [cores]])
        done = windows.total(self.share * kept.take(windows.slot, axis=1))
        done = np.minimum(done[:-1], done[-1]).take(windows.of_request, axis=1)
        return float((problem.value * self.chosen * done).sum())


def _respond(
    problem: Problem, windows: Windows, prices: Floats, *, heat: float, price_heat: float
) -> _Plan:
    """Requests choose variants and slots, the cheaper the likelier."""
    slots = problem.capacity_ms.shape[1]
    share = _paid(prices).take(windows.slot, axis=1)
    least = windows.least(share)
    np.subtract(least.take(windows.owner, axis=1), share, out=share)
    share /= price_heat
    np.exp(share, out=share)
    total = windows.total(share)
    share /= total.take(windows.owner, axis=1)
    soft = (least - price_heat * np.log(total)).take(windows.of_request, axis=1)
    gain = (problem.value - problem.work_ms * soft[:-1] - problem.side_ms * soft[-1]) / heat
    top = np.maximum(gain.max(0), 0.0)
    chosen = np.exp(gain - top)
    chosen[problem.value < 0] = 0.0
    chosen *= problem.count / (chosen.sum(0) + np.exp(-top))

    def load_of(row: int, work_ms: Floats) -> Floats:
        window_ms = np.bincount(windows.of_request, work_ms, windows.count)
        load = np.bincount(windows.slot, share[row] * window_ms.take(windows.owner), slots)
        return load.astype(np.float64)

    engines = [load_of(v, chosen[v] * problem.work_ms[v]) for v in range(len(chosen))]
    side = load_of(-1, (chosen * problem.side_ms).sum(0))
    return _Plan(chosen, share, np.stack(engines), side)


def solve(problem: Problem) -> tuple[float, float]:
    """The least g found, and the value of the best plan found: the optimum lies between them."""
    if not (problem.value > 0).any():
        return 0.0, 0.0
    free = np.zeros_like(problem.capacity_ms)
    before = LEVELS[0][0]
    prices, reached = np.zeros_like(problem.coarser(before).capacity_ms), 0.0
    for factor, steps in LEVELS:
        level = problem.coarser(factor).bundled()
        slots = level.capacity_ms.shape[1]
        prices = np.repeat(prices, before // factor, axis=1)[:, :slots]
        prices, reached = _descend(level, prices, steps)
        before = factor
    return min(dual(problem, free), dual(problem, prices)), reached


def _descend(problem: Problem, start: Floats, steps: int) -> tuple[Floats, float]:
    """The best prices found from a start, and the value of the best plan met on the way."""
    windows = Windows(problem)
    worth = problem.value / problem.work_ms
    typical = float(np.median(worth.max(0)[problem.value.max(0) > 0]))
    prices, kept, least, reached = start, start, dual(problem, start, windows), 0.0
    drift, scale = np.zeros_like(start), np.zeros_like(start)
    for step in range(1, steps + 1):
        progress = step / steps
        heat = WARM * (COLD / WARM) ** progress
        plan = _respond(problem, windows, prices, heat=heat, price_heat=heat * typical)
        slope = problem.capacity_ms - plan.load_ms
        drift = MOMENTUM * drift + (1 - MOMENTUM) * slope
        scale = SCALE_MEMORY * scale + (1 - SCALE_MEMORY) * slope * slope
        even = np.sqrt(scale / (1 - SCALE_MEMORY**step)) + 1e-3 * problem.capacity_ms + 1e-12
        rate = RATE * typical * RATE_FALLS_TO**progress
        prices = np.maximum(prices - rate * drift / (1 - MOMENTUM**step) / even, 0.0)
        if step % LOOKS_EVERY == 0:
            reached = max(reached, plan.value(problem, windows))
            found = dual(problem, prices, windows)
            if found < least:
                least, kept = found, prices
            if least - reached <= TOLERANCE * least:
                break
    return kept, reached
