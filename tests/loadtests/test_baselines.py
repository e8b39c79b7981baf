"""What each baseline chooses, given what its router has in flight."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest

from loadtests.baselines import BASELINES, BLACKLISTED_S
from loadtests.sim_types import Policy
from tests.loadtests.sim_machines import MACHINE, request


class FakeView:
    """So many tokens in flight, by variant."""

    def __init__(self, tokens: Mapping[str, int] | None = None) -> None:
        self._tokens = tokens or {}

    def inflight_tokens(self, variant: str) -> int:
        return self._tokens.get(variant, 0)

    def inflight_requests(self, variant: str) -> int:
        return self._tokens.get(variant, 0) // 50


IDLE = FakeView()


def make(name: str, *, seed: int = 0) -> Policy:
    return BASELINES[name](MACHINE, random.Random(seed))  # noqa: S311


def chosen(policy: Policy, view: FakeView, *, count: int = 1, budget_ms: float = 1000.0) -> Counter:
    asked = (request(number, 0.0, budget_ms=budget_ms) for number in range(count))
    return Counter(policy.decide(one, view, now_s=0.0) for one in asked)


@pytest.mark.parametrize("name", BASELINES)
def test_none_refuses(name: str) -> None:
    """However full the queues and short the budget, a variant of the machine is chosen."""
    full = FakeView({v.variant: 1_000_000 for v in MACHINE.variants})
    found = chosen(make(name), full, count=20, budget_ms=1.0)
    assert found.keys() <= {v.variant for v in MACHINE.variants}


@pytest.mark.parametrize("name", BASELINES)
def test_a_seed_names_the_choices(name: str) -> None:
    """The same random numbers give the same choices."""
    first, second = make(name, seed=3), make(name, seed=3)
    for number in range(30):
        one = request(number, 0.0)
        assert first.decide(one, IDLE, now_s=0.0) == second.decide(one, IDLE, now_s=0.0)


@pytest.mark.parametrize("name", BASELINES)
def test_a_machine_of_one_variant_leaves_no_choice(name: str) -> None:
    """Each works with a single rung."""
    alone = replace(MACHINE, variants=MACHINE.variants[1:2])
    policy = BASELINES[name](alone, random.Random(0))  # noqa: S311
    assert policy.decide(request(0, 0.0), IDLE, now_s=0.0) == "middle"


def test_always_best_and_always_fastest_look_at_nothing() -> None:
    """They send all to the two ends of the ladder, queues or not."""
    full = FakeView({"best": 100_000, "cheap": 100_000})
    assert chosen(make("always best"), full, count=5) == {"best": 5}
    assert chosen(make("always fastest"), full, count=5) == {"cheap": 5}


def test_a_static_split_follows_capacity() -> None:
    """Each variant's share of many requests is its share of the tokens per millisecond."""
    capacities = {v.variant: 1 / v.profile.cost_ms for v in MACHINE.variants}
    found = chosen(make("static split"), IDLE, count=6000)
    for variant, capacity in capacities.items():
        share = capacity / sum(capacities.values())
        assert found[variant] / 6000 == pytest.approx(share, abs=0.03)


def test_round_robin_takes_turns() -> None:
    """Nobody gets a second request before all have had one."""
    assert chosen(make("round robin"), IDLE, count=9) == {"best": 3, "middle": 3, "cheap": 3}


def test_two_choices_never_take_the_fullest() -> None:
    """Whichever two are drawn, the one with the longest wait is not the shorter of them."""
    view = FakeView({"best": 500, "middle": 5000, "cheap": 500})
    found = chosen(make("two random choices"), view, count=200)
    assert set(found) == {"best", "cheap"}


def test_minimum_predicted_weighs_queue_against_speed() -> None:
    """The cheapest when idle; a slower one once the cheapest has more ahead than that costs."""
    policy = make("minimum predicted")
    assert chosen(policy, IDLE) == {"cheap": 1}
    assert chosen(policy, FakeView({"cheap": 200})) == {"middle": 1}


def test_infaas_takes_the_best_that_fits_behind_its_queue() -> None:
    """The budget filters by profile and queue, and fidelity decides; without any, the soonest."""
    policy = make("INFaaS-style")
    assert chosen(policy, IDLE) == {"best": 1}
    assert chosen(policy, FakeView({"best": 20_000})) == {"middle": 1}
    assert chosen(policy, IDLE, budget_ms=6.0) == {"middle": 1}
    assert chosen(policy, FakeView({"cheap": 10_000}), budget_ms=1.0) == {"middle": 1}


@pytest.mark.parametrize("how", ["answered late", "expired"])
def test_infaas_passes_over_a_variant_that_missed(how: str) -> None:
    """For a while after a miss it diverts to the next best, then comes back."""
    policy, missed = make("INFaaS-style"), request(0, 0.0, budget_ms=100.0)
    if how == "expired":
        policy.late(missed, "best", now_s=1.0)
    else:
        policy.finished(missed, "best", latency_ms=101.0, now_s=1.0)
    again, back = request(1, 1.5), request(2, 1.0 + BLACKLISTED_S)
    assert policy.decide(again, IDLE, now_s=again.arrived_s) == "middle"
    assert policy.decide(back, IDLE, now_s=back.arrived_s) == "best"


def test_infaas_holds_nothing_against_a_variant_in_time() -> None:
    """An answer within its budget marks nobody."""
    policy = make("INFaaS-style")
    policy.finished(request(0, 0.0, budget_ms=100.0), "best", latency_ms=99.0, now_s=0.5)
    assert policy.decide(request(1, 0.5), IDLE, now_s=0.5) == "best"
