"""What a simulated run comes to.

Attainment: first attempts answered in time / offered; a refusal is a miss. Normalised fidelity: the
mean over all offered of `(q - q_min) / (q_max - q_min)`, zero for those that missed. Both count first
attempts only: what a client gets by asking again is told apart.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtests.cluster_model import Fate, Outcome
from loadtests.sim_types import Machine, SimRequest

WINDOW_S = 10
FEWEST_IN_WINDOW = 50  # requests in a window that say anything
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How often p95 forecasts held, of requests not let in at risk."""

    variant: str
    bin: int
    within: int
    of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run's numbers. Shares are of all offered first attempts."""

    offered: int
    attainment: float
    fidelity: float
    rejected: float
    late: float
    hung_up: float
    worst_window: float | None  # attainment in the worst 10 s
    by_budget: dict[str, float]  # attainment, by budget in milliseconds
    variants: dict[str, float]  # on time, by variant
    p50_ms: float  # of answers in time
    p95_ms: float
    calibration: tuple[Calibration, ...]
    decisions: int
    retries: int
    retries_on_time: int


def result_of(
    fate: Fate,
    requests: Sequence[SimRequest],
    machine: Machine,
    *,
    decisions: int,
    forecasts: Mapping[tuple[str, int, bool], int],
) -> Result:
    """Count what became of a run's requests."""
    offered = max(len(requests), 1)
    counts = Counter(fate.outcomes)
    served = Counter(
        variant
        for variant, outcome in zip(fate.variants, fate.outcomes, strict=True)
        if outcome == Outcome.ON_TIME
    )
    worth = worths(machine)
    latencies_ms = sorted(ms for ms in fate.latencies_ms if ms)
    return Result(
        offered=len(requests),
        attainment=counts[Outcome.ON_TIME] / offered,
        fidelity=sum(worth[v] * count for v, count in served.items()) / offered,
        rejected=counts[Outcome.REJECTED] / offered,
        late=counts[Outcome.LATE] / offered,
        hung_up=counts[Outcome.HUNG_UP] / offered,
        worst_window=worst_window(requests, fate.outcomes),
        by_budget=_by_budget(requests, fate.outcomes),
        variants={v.variant: served[v.variant] / offered for v in machine.variants},
        p50_ms=_quantile(latencies_ms, 0.5),
        p95_ms=_quantile(latencies_ms, 0.95),
        calibration=_calibration(forecasts),
        decisions=decisions,
        retries=len(fate.retried),
        retries_on_time=sum(outcome == Outcome.ON_TIME for _, outcome in fate.retried),
    )


def worths(machine: Machine) -> dict[str, float]:
    """Each variant's fidelity, from 0 for the lowest deployed to 1 for the highest."""
    fidelities = [facts.fidelity for facts in machine.variants]
    low, span = min(fidelities), max(fidelities) - min(fidelities)
    return {
        facts.variant: (facts.fidelity - low) / span if span else 1.0 for facts in machine.variants
    }


def seconds(requests: Sequence[SimRequest], outcomes: bytearray) -> list[tuple[int, int]]:
    """For each second by arrival: first attempts offered, and answered in time."""
    if not requests:
        return []
    count = int(requests[-1].arrived_s) + 1
    offered, on_time = [0] * count, [0] * count
    for request, outcome in zip(requests, outcomes, strict=True):
        second = int(request.arrived_s)
        offered[second] += 1
        on_time[second] += outcome == Outcome.ON_TIME
    return list(zip(offered, on_time, strict=True))


def worst_window(requests: Sequence[SimRequest], outcomes: bytearray) -> float | None:
    """The lowest attainment in 10 s, begun at any full second; None where all are too thin."""
    by_second = seconds(requests, outcomes)
    worst = None
    for start in range(max(len(by_second) - WINDOW_S + 1, 1)):
        window = by_second[start : start + WINDOW_S]
        offered = sum(n for n, _ in window)
        if offered >= FEWEST_IN_WINDOW:
            attained = sum(n for _, n in window) / offered
            worst = attained if worst is None else min(worst, attained)
    return worst


def _by_budget(requests: Sequence[SimRequest], outcomes: bytearray) -> dict[str, float]:
    tallies: dict[float, list[int]] = defaultdict(lambda: [0, 0])
    for request, outcome in zip(requests, outcomes, strict=True):
        tally = tallies[request.budget_ms]
        tally[0] += outcome == Outcome.ON_TIME
        tally[1] += 1
    return {f"{ms:g}": on_time / of for ms, (on_time, of) in sorted(tallies.items())}


def _calibration(forecasts: Mapping[tuple[str, int, bool], int]) -> tuple[Calibration, ...]:
    bins = sorted({(variant, number) for variant, number, _ in forecasts})
    found = []
    for variant, number in bins:
        within = forecasts.get((variant, number, True), 0)
        of = within + forecasts.get((variant, number, False), 0)
        found.append(Calibration(variant=variant, bin=number, within=within, of=of))
    return tuple(found)


def _quantile(values: Sequence[float], share: float) -> float:
    return values[min(int(share * len(values)), len(values) - 1)] if values else 0.0


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over seeds and half of its 95 % confidence interval (Student's t)."""

    value: float
    half: float | None  # None with one seed

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        count = len(values)
        mean = sum(values) / count
        if count < 2:  # noqa: PLR2004
            return cls(mean, None)
        variance = sum((value - mean) ** 2 for value in values) / (count - 1)
        return cls(mean, T_95.get(count, 2.0) * math.sqrt(variance / count))
