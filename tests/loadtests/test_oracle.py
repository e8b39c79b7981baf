"""The clairvoyant bound against exact optima of small instances, and against simulated policies."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.baselines import BASELINES
from loadtests.cluster_model import Cluster
from loadtests.fluid import Problem, dual, solve
from loadtests.oracle import bound
from loadtests.product_policy import BrainPolicy
from loadtests.sim_results import result_of, worths
from loadtests.sim_types import Machine, SimRequest
from loadtests.sim_workload import assumed_pools, in_bursts, requests_at
from tests.loadtests.sim_machines import MACHINE, SLOW, facts, request

ONE = facts("one", base_ms=0.0, per_token_ms=0.1)
BEST, MIDDLE, CHEAP = (
    facts("best", fidelity=1.0, base_ms=6.0, per_token_ms=0.2),
    facts("middle", fidelity=0.996, base_ms=3.0, per_token_ms=0.12),
    facts("cheap", fidelity=0.98, base_ms=2.0, per_token_ms=0.05),
)
NEAR = 1e-9

small = st.lists(
    st.tuples(
        st.floats(0.0, 0.15),
        st.sampled_from([8, 40, 130, 250]),
        st.sampled_from([15.0, 30.0, 60.0, 120.0]),
    ),
    min_size=1,
    max_size=6,
)
quick = settings(derandomize=True, max_examples=60, deadline=None)


def requests_of(rows: Sequence[tuple[float, int, float]]) -> list[SimRequest]:
    return [
        request(number, arrived_s, tokens=tokens, budget_ms=budget_ms)
        for number, (arrived_s, tokens, budget_ms) in enumerate(sorted(rows))
    ]


class Instance:
    """Few requests, and what one batch more would mean for each choice of texts."""

    def __init__(self, requests: Sequence[SimRequest], machine: Machine) -> None:
        self.machine = machine
        self.count = len(requests)
        self._tokens = [one.tokens for one in requests]
        self._opens, routed = [], 0.0
        for one in requests:
            routed = max(routed, one.arrived_s * 1000) + machine.router_ms
            self._opens.append(routed + machine.hop_ms / 2)
        self._closes = [
            one.arrived_s * 1000 + one.budget_ms - machine.hop_ms / 2 for one in requests
        ]

    def batches(self, of: int) -> Iterator[int]:
        """Every non-empty subset, as bits."""
        batch = of
        while batch:
            yield batch
            batch = (batch - 1) & of

    def ends(self, batch: int, variant: int, free_ms: float) -> float:
        """When a batch started at the soonest is done; infinite where one of its texts is late."""
        profile = self.machine.variants[variant].profile
        members = [i for i in range(self.count) if batch >> i & 1]
        padded = len(members) * max(self._tokens[i] for i in members)
        if len(members) > 1 and padded > profile.batch_tokens:
            return math.inf
        start = max(free_ms, *(self._opens[i] for i in members))
        end = start + profile.fitted_ms(padded)
        return end if end <= min(self._closes[i] for i in members) else math.inf


def exact_with_spare_cores(requests: Sequence[SimRequest], machine: Machine) -> tuple[float, float]:
    """The optimum where no batch disturbs another: who goes where, in which order and batches."""
    instance, everyone = Instance(requests, machine), (1 << len(requests)) - 1
    able = []
    for variant in range(len(machine.variants)):
        free = [0.0] + [math.inf] * everyone
        for served in range(1, everyone + 1):
            free[served] = min(
                instance.ends(batch, variant, free[served ^ batch])
                for batch in instance.batches(served)
            )
        able.append(
            _in_streams([s for s, end in enumerate(free) if end < math.inf], machine.streams)
        )
    plans = [plan for plan in itertools.product(*able) if sum(plan) == _union(plan)]
    return _best(plans, requests, machine)


def _in_streams(able: Sequence[int], streams: int) -> list[int]:
    """What an engine serves in so many streams, each of which can do what one alone can."""
    found = {0}
    for _ in range(streams):
        found = {mine | more for mine in found for more in able if not mine & more}
    return sorted(found)


def exact_on_one_core(requests: Sequence[SimRequest], machine: Machine) -> tuple[float, float]:
    """The optimum of one batch after the other, each on any engine."""
    instance, everyone = Instance(requests, machine), (1 << len(requests)) - 1
    nobody = (0,) * len(machine.variants)
    free = {nobody: 0.0}
    waiting = [nobody]
    while waiting:  # in order of the texts served, so that each state is final when it is met
        waiting.sort(key=lambda plan: sum(plan).bit_count())
        plan = waiting.pop(0)
        for batch in instance.batches(everyone & ~sum(plan)):
            for variant in range(len(plan)):
                end = instance.ends(batch, variant, free[plan])
                longer = (*plan[:variant], plan[variant] | batch, *plan[variant + 1 :])
                if end < free.get(longer, math.inf):
                    if longer not in free:
                        waiting.append(longer)
                    free[longer] = end
    return _best(list(free), requests, machine)


def _union(plan: Sequence[int]) -> int:
    found = 0
    for served in plan:
        found |= served
    return found


def _best(
    plans: Sequence[Sequence[int]], requests: Sequence[SimRequest], machine: Machine
) -> tuple[float, float]:
    worth = list(worths(machine).values())
    counts = [[served.bit_count() for served in plan] for plan in plans]
    attained = max(map(sum, counts))
    fidelity = max(sum(w * n for w, n in zip(worth, plan, strict=True)) for plan in counts)
    return attained / len(requests), fidelity / len(requests)


@quick
@given(small, st.sampled_from([0.0, 3.0]), st.sampled_from([5.0, 50.0]))
def test_no_schedule_beats_the_bound_with_a_core_for_each_engine(
    rows: list[tuple[float, int, float]], router_ms: float, slot_ms: float
) -> None:
    """The exact optimum over assignments, orders and batches is at most the bound."""
    machine = Machine(cores=3, variants=(BEST, CHEAP), router_ms=router_ms, hop_ms=1.0)
    requests = requests_of(rows)
    attained, fidelity = exact_with_spare_cores(requests, machine)
    found = bound(requests, machine, slot_ms=slot_ms)
    assert attained <= found.attainment + NEAR
    assert fidelity <= found.fidelity + NEAR


@quick
@given(small, st.sampled_from([5.0, 50.0]))
def test_no_schedule_of_two_streams_beats_the_bound_with_a_core_for_each(
    rows: list[tuple[float, int, float]], slot_ms: float
) -> None:
    """Nor where each of two engines runs two batches side by side, on five cores."""
    machine = Machine(cores=5, streams=2, variants=(BEST, CHEAP), router_ms=1.0)
    requests = requests_of(rows)
    attained, fidelity = exact_with_spare_cores(requests, machine)
    found = bound(requests, machine, slot_ms=slot_ms)
    assert attained <= found.attainment + NEAR
    assert fidelity <= found.fidelity + NEAR


@pytest.mark.parametrize(
    ("streams", "cores", "served"), [(1, 3, 5), (2, 3, 10), (2, 2, 10), (3, 2, 10), (2, 1, 5)]
)
def test_an_engine_has_as_many_cores_as_it_has_streams_and_there_are(
    streams: int, cores: float, served: int
) -> None:
    """Full batches of 20 ms within 100 ms: five a core, and the bound lies close above."""
    machine = Machine(cores=cores, streams=streams, variants=(ONE,))
    requests = [request(number, 0.0, tokens=200, budget_ms=100.0) for number in range(14)]
    found = bound(requests, machine, slot_ms=1.0)
    assert served / 14 <= found.attainment <= (served + 0.3 * min(streams, cores)) / 14


@pytest.mark.parametrize(
    ("cores", "together_pace", "served"), [(2, 1.25, 8), (2, 4.0, 5), (1, 1.25, 5)]
)
def test_batches_of_one_engine_slow_each_other_too(
    cores: float, together_pace: float, served: int
) -> None:
    """Two streams do their cores over `together_pace`, or what one does undisturbed."""
    machine = Machine(cores=cores, streams=2, variants=(ONE,), together_pace=together_pace)
    requests = [request(number, 0.0, tokens=200, budget_ms=100.0) for number in range(14)]
    found = bound(requests, machine, slot_ms=1.0)
    assert served / 14 <= found.attainment <= (served + 0.5) / 14


@quick
@given(small.filter(lambda rows: len(rows) < 6), st.sampled_from([5.0, 50.0]))
def test_no_schedule_beats_the_bound_on_one_core(
    rows: list[tuple[float, int, float]], slot_ms: float
) -> None:
    """Nor where three engines share a single core."""
    machine = Machine(cores=1, variants=(BEST, MIDDLE, CHEAP))
    requests = requests_of(rows)
    attained, fidelity = exact_on_one_core(requests, machine)
    found = bound(requests, machine, slot_ms=slot_ms)
    assert attained <= found.attainment + NEAR
    assert fidelity <= found.fidelity + NEAR


def test_eight_requests_that_crowd_each_other_are_bounded_closely() -> None:
    """Full batches of one engine, one after the other: all that lies between is the last slot."""
    machine = Machine(cores=2, variants=(ONE,))  # a full batch of 200 tokens takes 20 ms
    requests = [request(number, 0.0, tokens=200, budget_ms=100.0) for number in range(8)]
    attained, _ = exact_with_spare_cores(requests, machine)
    found = bound(requests, machine, slot_ms=1.0)
    assert attained == 5 / 8
    assert attained <= found.attainment <= attained + 0.02


def test_without_contention_the_bound_is_reached() -> None:
    """Requests far apart get the best variant that they can; the bound grants no more."""
    machine = Machine(cores=2, variants=(BEST, MIDDLE, CHEAP), hop_ms=1.0)
    rows = [(0.0, 20, 100.0), (1.0, 250, 40.0), (2.0, 250, 20.0), (3.0, 250, 10.0)]
    requests = requests_of(rows)
    found = bound(requests, machine)
    worth = worths(machine)
    assert found.attainment == pytest.approx(3 / 4)
    assert found.fidelity == pytest.approx((worth["best"] + worth["middle"]) / 4)
    assert (found.attainment, found.fidelity) == pytest.approx(
        exact_with_spare_cores(requests, machine)
    )


@pytest.mark.parametrize(("cores", "served"), [(1, 50), (2, 100)])
def test_shared_cores_bound_what_engines_do_together(cores: float, served: int) -> None:
    """Two engines serve twice as many as one only where each has a core."""
    machine = Machine(cores=cores, variants=(ONE, facts("two", base_ms=0.0, per_token_ms=0.1)))
    requests = [request(number, 0.0, tokens=200) for number in range(200)]
    found = bound(requests, machine, slot_ms=10.0)
    assert served / 200 <= found.attainment <= 1.05 * served / 200


def test_the_router_takes_one_request_at_a_time() -> None:
    """Requests that the router reaches too late are lost, whoever decides."""
    machine = Machine(cores=4, variants=(CHEAP,), router_ms=10.0)
    requests = [request(number, 0.0, tokens=10, budget_ms=500.0) for number in range(100)]
    found = bound(requests, machine)
    assert found.attainment == pytest.approx(0.49)


@pytest.mark.parametrize("router_ms", [0.009, 0.7, 1.348, 1.748, 2.7, 3.3])
def test_overheads_that_do_not_add_up_in_binary_are_bounded_too(router_ms: float) -> None:
    """The first request's window begins at zero, not a rounding error before it."""
    machine = replace(MACHINE, router_ms=router_ms, refuse_ms=router_ms / 2)
    found = bound([request(0, 0.0), request(1, 0.001)], machine)
    assert found.attainment == pytest.approx(1.0, abs=1e-3)


def test_a_routing_router_leaves_less_to_the_engines() -> None:
    """While it routes, served requests or others, engines on all cores have to share with it."""
    busy = Machine(cores=1, variants=(ONE,), router_ms=5.0)
    requests = [
        request(number, 0.005 * number, tokens=200, budget_ms=100.0) for number in range(400)
    ]
    attained = bound(requests, busy).attainment
    quiet = Machine(cores=1, variants=(ONE,))
    assert attained < 0.6 * bound(requests, quiet).attainment


@pytest.mark.parametrize(
    ("machine", "rate"),
    [
        (MACHINE, 60.0),
        (MACHINE, 700.0),
        (SLOW, 60.0),
        (SLOW, 500.0),
        (replace(MACHINE, streams=2), 60.0),
        (replace(MACHINE, streams=2), 700.0),
        (replace(SLOW, streams=2), 500.0),
    ],
)
def test_no_simulated_policy_beats_the_bound(machine: Machine, rate: float) -> None:
    """The product and every baseline, simulated on the same requests, stay below."""
    requests = requests_at(in_bursts(rate, 6.0, 1), assumed_pools(), seed=1)
    found = bound(requests, machine)
    for make in (BrainPolicy, *BASELINES.values()):
        fate = Cluster(machine, make, seed=1).run(requests)
        result = result_of(fate, requests, machine, decisions=0, forecasts={})
        assert result.attainment <= found.attainment + NEAR
        assert result.fidelity <= found.fidelity + NEAR


def test_the_prices_come_close_to_the_best() -> None:
    """Under overload, a plan of nearly the bound's value proves that it is not far too high."""
    requests = requests_at(in_bursts(700.0, 6.0, 1), assumed_pools(), seed=1)
    found = bound(requests, MACHINE)
    assert found.attainment < 0.95
    assert 0 <= found.attainment_gap < 0.025
    assert 0 <= found.fidelity_gap < 0.025


def test_the_order_of_requests_and_no_requests_at_all() -> None:
    """Requests may come in any order; where there are none, nothing is missed."""
    requests = requests_of([(0.1 * n, 40, 50.0) for n in range(5)])
    assert bound(requests[::-1], MACHINE) == bound(requests, MACHINE)
    assert bound([], MACHINE).attainment == 1.0


@quick
@given(st.integers(0, 10_000))
def test_any_prices_bound_any_plan(seed: int) -> None:
    """Weak duality: whatever the prices, g is at least the value of the best plan found."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 8, 30)
    problem = Problem(
        value=rng.choice([-1.0, 0.3, 1.0], (2, 30)),
        work_ms=rng.uniform(1.0, 30.0, (2, 30)),
        side_ms=rng.uniform(0.0, 3.0, (2, 30)),
        count=np.ones(30),
        first=first,
        last=first + rng.integers(0, 4, 30),
        capacity_ms=rng.uniform(0.0, 40.0, (4, 12)),
    )
    upper, reached = solve(problem)
    prices = rng.exponential(0.05, (4, 12)) * rng.integers(0, 2, (4, 12))
    assert reached <= upper + NEAR
    assert reached <= dual(problem, prices) + NEAR
