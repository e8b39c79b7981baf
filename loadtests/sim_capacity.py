"""What one rung alone sustains: the most requests a second whose answers keep up with their arrivals.

The simulator runs the machine with only that rung, all requests sent to it, with budgets that never end.
Doubling and bisection find the greatest steady rate at which, in the second half of a run, at least
`KEEPS_UP` as many were answered as arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loadtests.cluster_model import Cluster
from loadtests.sim_types import Machine, SimRequest, View
from loadtests.sim_workload import TokenPool, requests_at, steady

KEEPS_UP = 0.98
RUN_S = 40.0
ENDLESS_MS = 1e9
PRECISION = 0.01


class Only:
    """Sends all to one variant."""

    def __init__(self, variant: str) -> None:
        self._variant = variant

    def decide(self, _request: SimRequest, _view: View, *, now_s: float) -> str | None:
        del now_s
        return self._variant

    def finished(
        self, request: SimRequest, variant: str, *, latency_ms: float, now_s: float
    ) -> None:
        """Nothing is learned."""

    def late(self, request: SimRequest, variant: str, *, now_s: float) -> None:
        """Nothing is learned."""


def sustained(
    machine: Machine, variant: str, pools: Sequence[TokenPool], *, run_s: float = RUN_S
) -> float:
    """Requests a second that a variant sustains alone on the machine."""
    alone = replace(machine, variants=tuple(v for v in machine.variants if v.variant == variant))
    low, high = 0.0, _least(alone, pools)
    while _keeps_up(alone, high, pools, run_s):
        low, high = high, 1.5 * high
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        if _keeps_up(alone, middle, pools, run_s):
            low = middle
        else:
            high = middle
    return low


def _least(machine: Machine, pools: Sequence[TokenPool]) -> float:
    """A rate to begin with: half of what the profile says that full batches without padding carry."""
    shares = sum(pool.share for pool in pools)
    tokens = sum(pool.share * sum(pool.tokens) / len(pool.tokens) for pool in pools) / shares
    return 500 / (tokens * machine.variants[0].profile.cost_ms)


def _keeps_up(machine: Machine, rate: float, pools: Sequence[TokenPool], run_s: float) -> bool:
    variant = machine.variants[0].variant
    drawn = requests_at(steady(rate, run_s, seed=0), pools, seed=0)
    requests = tuple(replace(request, budget_ms=ENDLESS_MS) for request in drawn)
    fate = Cluster(machine, lambda _machine, _rng: Only(variant), seed=0).run(requests)
    half_s = run_s / 2
    arrived = answered = 0
    for request, latency_ms in zip(requests, fate.latencies_ms, strict=True):
        arrived += request.arrived_s >= half_s
        answered += half_s <= request.arrived_s + latency_ms / 1000 < run_s
    return answered >= KEEPS_UP * arrived
