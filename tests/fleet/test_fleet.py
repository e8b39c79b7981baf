"""The deployed variants as one router sees them: what it knows of each comes from its replicas."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from serve_app.calls import Call, Reply
from serve_app.errors import HintConflict, NotReady, ReplicaDied, UnknownVariant
from serve_app.fleet import WARM_UP_CALLS, Fleet
from serve_app.manifest import Profile
from serve_app.policy.batching import short_batches
from serve_app.policy.hint import Hint, Quality
from serve_app.registry import Ladder
from serve_app.settings import Settings
from tests.asked import VARIANTS
from tests.fleet.asking import TEXTS, TOKENS, candidates

HERE = "this machine"
MakeFleet = Callable[..., Fleet]


def _profile(ladder: Ladder, variant: str, **changes: Any) -> Profile:
    """The manifest's profile with changes: what a replica on other hardware would measure."""
    (rung,) = (r for r in ladder.rungs if r.manifest.variant == variant)
    return replace(rung.manifest.profile, hardware=HERE, **changes)


def _warm(fleet: Fleet) -> Fleet:
    asyncio.run(fleet.warm_up(TEXTS))
    return fleet


def _engine_ms(fleet: Fleet, variant: str) -> float:
    """The forecast service of a variant without the hop, which is this machine's."""
    (found,) = (c for c in candidates(fleet) if c.variant == variant)
    return found.forecast.service_ms - fleet.brain.load(variant).pool.contention.at(1)[1]


def _decide(fleet: Fleet, hint: Hint) -> str | None:
    decision = fleet.decide(hint, tokens=TOKENS, elapsed_ms=0, client="a")
    return decision.chosen and decision.chosen.variant


def test_the_manifests_profile_is_the_forecast(make_fleet: MakeFleet) -> None:
    """Where it fits the replicas' hardware, a variant takes what its manifest says."""
    fleet = _warm(make_fleet())
    assert [c.cost for c in candidates(fleet)] == [1000, 100, 10]
    assert _engine_ms(fleet, "fake-int8") == pytest.approx(TOKENS * 10)


def test_a_replicas_own_profile_is_the_forecast(ladder: Ladder, make_fleet: MakeFleet) -> None:
    """After the warm-up the router forecasts with what a replica measured, not with its manifest."""
    own = _profile(ladder, "fake-int8", base_ms=7.0, per_token_ms=5000.0)
    fleet = _warm(make_fleet({"fake-int8": own}))
    assert _engine_ms(fleet, "fake-int8") == pytest.approx(7 + TOKENS * 5000)
    assert candidates(fleet)[2].cost == short_batches(own).cost_ms
    assert _engine_ms(fleet, "fake-bf16") == pytest.approx(TOKENS * 100)


def test_a_replicas_own_profile_changes_the_decision(ladder: Ladder, make_fleet: MakeFleet) -> None:
    """INT8 that is dear on this hardware is neither the cheapest nor what fits the budget."""
    fast, within = Hint(quality=Quality(floor=0.0)), Hint(budget_ms=1000)
    built_here = _warm(make_fleet())
    assert [_decide(built_here, hint) for hint in (fast, within)] == ["fake-int8", "fake-bf16"]
    own = {
        "fake-int8": _profile(ladder, "fake-int8", per_token_ms=5000.0),
        "fake-fp32": _profile(ladder, "fake-fp32", per_token_ms=1.0),
    }
    elsewhere = _warm(make_fleet(own))
    assert [_decide(elsewhere, hint) for hint in (fast, within)] == ["fake-fp32", "fake-fp32"]


def test_the_replicas_batches_size_the_calls(ladder: Ladder, make_fleet: MakeFleet) -> None:
    """One batch a call, as large as the replica measured that it should be."""
    own = _profile(ladder, "fake-int8", batch_tokens=16)
    fleet = make_fleet({"fake-int8": own})
    lane, sizes = fleet.lanes["fake-int8"], []
    inner = lane._transport

    async def counting(call: Call) -> Reply:
        sizes.append(call.count)
        return await inner(call)

    lane._transport = counting
    _warm(fleet)
    sizes.clear()
    asyncio.run(lane.embed([np.arange(8, dtype=np.int32)] * 8, deadline_s=None))
    assert sizes == [2, 2, 2, 2]


def test_the_warm_up_measures_the_hop_after_the_first_call(make_fleet: MakeFleet) -> None:
    """The first call opens connections: its time is not taken for that of later ones."""
    fleet = make_fleet()
    lane = fleet.lanes["fake-int8"]
    inner, calls = lane._transport, []

    async def counting(call: Call) -> Reply:
        calls.append(call)
        return await inner(call)

    lane._transport = counting
    lane._brain = watched = mock.Mock(wraps=fleet.brain)
    _warm(fleet)
    assert len(calls) == 1 + WARM_UP_CALLS
    assert watched.saw.call_count == WARM_UP_CALLS


def test_variants_are_ready_one_by_one(make_fleet: MakeFleet) -> None:
    """A variant that answers is up, whatever becomes of another; who starts is told in order."""
    fleet = make_fleet()

    async def dead(_: Call) -> Reply:
        raise ReplicaDied("gone")

    fleet.lanes["fake-fp32"]._transport = dead
    assert fleet.starting == VARIANTS
    with pytest.raises(ReplicaDied):
        _warm(fleet)
    asyncio.run(fleet.warm_up_variant("fake-int8", TEXTS))
    assert "fake-int8" not in fleet.starting
    assert "fake-fp32" in fleet.starting
    with pytest.raises(NotReady, match="fake-fp32"):
        _decide(fleet, Hint(variant="fake-fp32"))


@pytest.mark.parametrize(
    ("hint", "refusal"),
    [
        (Hint(variant="fp4"), UnknownVariant),
        (Hint(variant="fake-int8", quality=Quality(floor=0.99)), HintConflict),
    ],
)
def test_a_pin_must_be_deployed_and_at_the_floor(
    make_fleet: MakeFleet, hint: Hint, refusal: type[Exception]
) -> None:
    """The refusal comes before anything runs, and names the variant."""
    fleet = make_fleet()
    with pytest.raises(refusal, match=str(hint.variant)):
        fleet.check_pin(hint, param="variant")
    fleet.check_pin(Hint(variant="fake-int8", quality=Quality(floor=0.98)), param="variant")
    fleet.check_pin(Hint(), param="variant")


def test_a_variant_without_replicas_is_never_chosen(make_fleet: MakeFleet) -> None:
    """What is cold is reported as such, and chosen again only once it is warm."""
    fleet = _warm(make_fleet())
    fast = Hint(quality=Quality(floor=0.0))
    fleet.brain.set_ready("fake-int8", ready=False)
    assert fleet.starting == ["fake-int8"]
    decision = fleet.decide(fast, tokens=TOKENS, elapsed_ms=0, client="a")
    assert decision.chosen is not None
    assert decision.chosen.variant == "fake-bf16"
    reasons = {r.variant: r.reason for r in decision.rejected}
    assert reasons["fake-int8"] == "no replica is up yet"
    asyncio.run(fleet.warm_up_variant("fake-int8", TEXTS))
    assert _decide(fleet, fast) == "fake-int8"


@pytest.mark.parametrize(
    ("hint", "wanted"),
    [
        (Hint(variant="fake-fp32"), "fake-fp32"),
        (Hint(quality=Quality(best=True)), "fake-fp32"),
        (Hint(quality=Quality(floor=0.99)), "fake-bf16"),
        (Hint(), "fake-bf16"),
    ],
)
def test_what_only_cold_variants_could_do_is_not_ready_and_wished_for(
    make_fleet: MakeFleet, hint: Hint, wanted: str
) -> None:
    """503, not a 429 for good; and the demand is there for whoever starts replicas."""
    fleet = make_fleet()
    fleet.brain.set_ready("fake-int8")
    with pytest.raises(NotReady, match=wanted):
        fleet.decide(hint, tokens=TOKENS, elapsed_ms=0, client="a")
    demand = fleet.demand()
    assert demand.pop(wanted) > 0
    assert set(demand.values()) == {0.0}


def test_a_refused_request_is_wished_for_too(make_fleet: MakeFleet) -> None:
    """What was overrun has to be seen by whoever starts replicas."""
    fleet = _warm(make_fleet())
    load = fleet.brain.load("fake-bf16")
    with load.hold(10_000), load.call(10_000, now_s=time.monotonic()):
        hint = Hint(budget_ms=1000, quality=Quality(floor=0.99))
        assert _decide(fleet, hint) is None
    assert fleet.demand()["fake-bf16"] > 0
    assert fleet.tally.refused == 1


def test_a_busy_variant_is_asked_all_the_same_while_a_stream_is_free(make_fleet: MakeFleet) -> None:
    """Routers reckon with as many batches at once as the replicas of these settings run."""
    fleet = _warm(make_fleet(streams=2))
    load = fleet.brain.load("fake-bf16")
    hint = Hint(budget_ms=1000, quality=Quality(floor=0.99))
    with load.hold(10_000), load.call(10_000, now_s=time.monotonic()):
        assert _decide(fleet, hint) == "fake-bf16"
        with load.call(10, now_s=time.monotonic()):
            assert _decide(fleet, hint) is None


def test_asking_only_leaves_no_trace(make_fleet: MakeFleet) -> None:
    """`judge` counts no demand and no refusal."""
    fleet = _warm(make_fleet())
    for hint in (Hint(), Hint(budget_ms=0.001)):
        fleet.judge(hint, tokens=TOKENS, elapsed_ms=0, client="a")
    assert set(fleet.demand().values()) == {0.0}
    assert fleet.tally.refused == 0


@pytest.mark.parametrize(("threads", "batches"), [(1, 8), (4, 2), (16, 0.5)])
def test_a_batch_takes_as_many_cores_as_it_has_threads(
    ladder: Ladder, threads: int, batches: float
) -> None:
    """So many batches run side by side on eight cores, of all variants together."""
    transports = {rung.manifest.variant: _never for rung in ladder.rungs}
    fleet = Fleet(ladder, transports, settings=Settings(cores=8, threads=threads))
    pools = {id(lane.load.pool): lane.load.pool.cores for lane in fleet.lanes.values()}
    assert list(pools.values()) == [batches]


def test_several_routers_keep_to_equal_parts_of_the_cores(ladder: Ladder) -> None:
    """Four of them on eight cores fill two each; all of them filling eight would have each batch wait for three others."""
    transports = {rung.manifest.variant: _never for rung in ladder.rungs}
    fleet = Fleet(ladder, transports, settings=Settings(cores=8, routers=4))
    assert {lane.load.pool.cores for lane in fleet.lanes.values()} == {2}


async def _never(call: Call) -> Reply:
    raise AssertionError(f"nobody sends {call}")
