"""One simulated run: which requests, against which policy, on which set-up."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from loadtests.cluster_model import Cluster, Setup
from loadtests.machine_file import Measured
from loadtests.product_policy import BrainPolicy, Switches
from loadtests.sim_results import Result, result_of, seconds
from loadtests.sim_types import Machine, Policy, SimRequest
from loadtests.sim_workload import in_bursts, replayed, requests_at, steady

ROUTED = "routed"
BOUND = "bound"
STAYS = 0.99
STAYS_S = 5  # so many seconds on end count as recovered
SHOWN_AFTER_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Arrivals: their kind, mean rate and length; `spike` adds a rate between two times."""

    kind: str
    rate: float
    duration_s: float
    trace: Path | None = None
    spike: tuple[float, float, float] | None = None  # from and to, seconds, and requests a second


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One simulation to make."""

    scenario: str
    name: str  # of what is compared, as the tables show it
    load: Load
    seed: int
    policy: str = ROUTED
    switches: Switches = field(default_factory=Switches)
    setup: Setup = field(default_factory=Setup)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a run came to."""

    run: Run
    result: Result | None  # None for the bound
    attainment: float
    fidelity: float
    recovered_s: int | None = None  # after the spike's end; None without one, or if it never did
    around_spike: tuple[float, ...] = ()  # attainment before it, within, and each second after


def requests_of(load: Load, seed: int, measured: Measured) -> tuple[SimRequest, ...]:
    """The same requests for all who run the same load and seed."""
    rng = np.random.default_rng([seed, 1])
    if load.kind == "bursty":
        offsets = in_bursts(load.rate, load.duration_s, seed)
    elif load.trace is not None:
        offsets = replayed(load.trace, load.rate, load.duration_s, seed)
    else:
        offsets = steady(load.rate, load.duration_s, seed)
    if load.spike is not None:
        from_s, to_s, rate = load.spike
        more = rng.uniform(from_s, to_s, rng.poisson(rate * (to_s - from_s)))
        offsets = np.sort(np.concatenate([offsets, more]))
    return requests_at(offsets, measured.pools, seed=seed)


_requests_of = lru_cache(maxsize=2)(requests_of)


def execute(run: Run, measured: Measured) -> Done:
    """Make one run."""
    requests, machine = _requests_of(run.load, run.seed, measured), measured.machine
    if run.policy == BOUND:
        from loadtests.oracle import bound

        best = bound(requests, machine)
        return Done(run=run, result=None, attainment=best.attainment, fidelity=best.fidelity)
    cluster = Cluster(machine, _maker(run), seed=run.seed, setup=run.setup)
    fate = cluster.run(requests)
    forecasts: Counter[tuple[str, int, bool]] = Counter()
    for policy in cluster.policies:
        if isinstance(policy, BrainPolicy):
            forecasts.update(policy.forecasts)
    result = result_of(
        fate,
        requests,
        machine,
        decisions=sum(router.decisions for router in cluster.routers),
        forecasts=forecasts,
    )
    return Done(
        run=run,
        result=result,
        attainment=result.attainment,
        fidelity=result.fidelity,
        recovered_s=recovered_s(run.load, requests, fate.outcomes),
        around_spike=around_spike(run.load, requests, fate.outcomes),
    )


def _maker(run: Run) -> Callable[[Machine, random.Random], Policy]:
    if run.policy == ROUTED:
        switches = replace(run.switches, profile_error=run.setup.profile_error)
        return lambda machine, rng: BrainPolicy(machine, rng, switches=switches)
    return baselines()[run.policy]


def baselines() -> Mapping[str, Callable[[Machine, random.Random], Policy]]:
    """Other policies, by name."""
    from loadtests.baselines import BASELINES

    return BASELINES


def recovered_s(load: Load, requests: Sequence[SimRequest], outcomes: bytearray) -> int | None:
    """Full seconds from the spike's end until attainment stays high."""
    if load.spike is None:
        return None
    after = seconds(requests, outcomes)[int(load.spike[1]) :]
    good = [on_time >= STAYS * offered for offered, on_time in after]
    for second in range(len(good) - STAYS_S + 1):
        if all(good[second : second + STAYS_S]):
            return second
    return None


def around_spike(
    load: Load, requests: Sequence[SimRequest], outcomes: bytearray
) -> tuple[float, ...]:
    """Attainment of all first attempts before a spike, within it, and in each of the seconds after."""
    if load.spike is None:
        return ()
    from_s, to_s = int(load.spike[0]), int(load.spike[1])
    by_second = seconds(requests, outcomes)
    parts = [by_second[:from_s], by_second[from_s:to_s]]
    parts += [[one] for one in by_second[to_s : to_s + SHOWN_AFTER_S]]
    return tuple(
        sum(on_time for _, on_time in part) / max(sum(offered for offered, _ in part), 1)
        for part in parts
    )
