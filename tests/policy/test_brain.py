"""The brain as router and simulator drive it: what it learns, gives back and wishes for."""

import contextlib
from contextlib import ExitStack

import pytest

from serve_app.policy.hint import Hint, Quality
from tests.policy.brains import (
    FIDELITIES,
    NOW_S,
    ask,
    brain_of_four,
    name_of,
    queue,
)


def test_idle_variants_serve_as_their_profiles_say() -> None:
    """A request without a hint gets the default's budget and floor; `best` gets the best."""
    brain = brain_of_four()
    assert name_of(ask(brain, Hint())) == "bf16"
    assert name_of(ask(brain, Hint(quality=Quality(best=True)))) == "fp32"
    forecast = brain.candidates(20, now_s=NOW_S)[2].forecast
    assert (forecast.wait_ms, forecast.service_ms) == pytest.approx((0, 1 + 20 * 0.1))
    assert forecast.p95_ms == pytest.approx(1.2 * 3)


def test_a_router_that_lags_serves_later() -> None:
    """A call waits for the router's thread when it leaves and once more when its reply is there."""
    brain = brain_of_four()
    before = brain.candidates(20, now_s=NOW_S)[0].forecast.service_ms
    brain.lag_ms = 7.0
    assert brain.candidates(20, now_s=NOW_S)[0].forecast.service_ms == pytest.approx(before + 14)


def test_busy_engines_slow_each_other() -> None:
    """Three of them on two cores: whoever comes waits for one to end, and runs among three."""
    brain = brain_of_four()
    with ExitStack() as stack:
        for variant in ("fp32", "bf16", "int8"):
            queue(stack, brain, variant, 10)
        assert brain.busy_with("int4", now_s=NOW_S) == 4
        assert brain.busy_with("int8", now_s=NOW_S) == 3
        cheap = brain.candidates(20, now_s=NOW_S)[3].forecast
        assert cheap.service_ms == pytest.approx(1.5 * (1 + 20 * 0.05))
        assert cheap.wait_ms > 0


def test_judging_and_looking_leave_no_trace() -> None:
    """However often somebody asks what would be, the next decision sees the rent as without it."""
    found = []
    for judges in (0, 50):
        brain = brain_of_four()
        with ExitStack() as stack:
            for variant in FIDELITIES:
                queue(stack, brain, variant, 3000)
            for step in range(20):
                now_s = NOW_S + 0.02 * step
                ask(brain, Hint(budget_ms=5000), now_s=now_s)
                for more in range(judges):
                    later_s = now_s + 0.01 * more / judges
                    brain.judge(
                        Hint(budget_ms=50), tokens=20, elapsed_ms=0, client="a", now_s=later_s
                    )
                    brain.candidates(600, now_s=later_s)
            for pool, _ in brain._pools:
                pool.look(now_s)
            found.append([pool.rent for pool, _ in brain._pools])
            assert brain.brownout.miss_share == 0
    assert found[0] == found[1]
    assert max(found[0]) > 0


def test_what_is_held_is_given_back() -> None:
    """Tokens are in flight for as long as a request is under way, and no longer."""
    brain = brain_of_four()
    decision = ask(brain, Hint())
    assert decision.chosen is not None
    load = brain.load(decision.chosen.variant)
    with contextlib.suppress(ValueError), brain.hold(decision.chosen, tokens=20, now_s=NOW_S):
        assert load.inflight_tokens == 20
        raise ValueError("trouble")
    assert load.inflight_tokens == 0


def test_lateness_is_learned_from_answers_and_from_what_was_given_up() -> None:
    """Both raise p95 for the same kind of request; what is in time lowers it a little."""
    factors = []
    for end in ("late", "answered late", "in time"):
        brain = brain_of_four()
        decision = ask(brain, Hint(variant="int8"))
        if end == "late":
            brain.late(decision, elapsed_ms=500, now_s=NOW_S)
        else:
            actual_ms = 1.0 if end == "in time" else 500.0
            brain.finished(decision, actual_ms=actual_ms, within_budget=True, now_s=NOW_S)
        forecast = brain.candidates(20, now_s=NOW_S)[2].forecast
        factors.append(forecast.p95_ms / forecast.told_ms)
    assert factors[0] == pytest.approx(factors[1])
    assert factors[1] > 1.2 > factors[2]


def test_the_median_is_learned_from_answers() -> None:
    """What half of the answers took is forecast, whatever the profile says; never more than p95."""
    brain = brain_of_four()
    for step in range(200):
        now_s = NOW_S + 0.01 * step
        decision = ask(brain, Hint(variant="int8"), now_s=now_s)
        assert decision.chosen is not None
        actual_ms = 0.5 * decision.chosen.forecast.told_ms
        brain.finished(decision, actual_ms=actual_ms, within_budget=True, now_s=now_s)
    found = brain.candidates(20, now_s=NOW_S + 2)[2].forecast
    assert found.p50_ms == pytest.approx(0.5 * found.told_ms, rel=0.05)
    other = brain.candidates(20, now_s=NOW_S + 2)[0].forecast
    assert other.p50_ms == other.told_ms
    for _ in range(200):
        decision = ask(brain, Hint(variant="int4"), now_s=NOW_S + 2)
        assert decision.chosen is not None
        brain.finished(
            decision,
            actual_ms=2 * decision.chosen.forecast.told_ms,
            within_budget=True,
            now_s=NOW_S + 2,
        )
    found = brain.candidates(20, now_s=NOW_S + 2)[3].forecast
    assert found.told_ms < found.p50_ms <= found.p95_ms


def test_a_budget_that_half_of_its_like_made_is_let_in_at_risk() -> None:
    """A profile that tells twice what requests take refuses, until the answers have told better."""
    brain = brain_of_four()
    asked = Hint(budget_ms=4.0, variant="int8")  # 2 are kept back, and 3 forecast
    refused = ask(brain, asked)
    assert refused.chosen is None
    for _ in range(200):
        decision = ask(brain, Hint(variant="int8"))
        actual_ms = 0.5 * (decision.chosen.forecast.told_ms if decision.chosen else 0.0)
        brain.finished(decision, actual_ms=actual_ms, within_budget=True, now_s=NOW_S)
    let_in = ask(brain, asked)
    assert let_in.chosen is not None
    assert let_in.at_risk


def test_who_hangs_up_was_not_failed() -> None:
    """The forecast learns that it took longer; the brownout hears of time-outs only."""
    told = []
    for hung_up in (False, True):
        brain = brain_of_four()
        decision = ask(brain, Hint(variant="int8"))
        brain.late(decision, elapsed_ms=500, now_s=NOW_S, hung_up=hung_up)
        told.append(
            (brain.brownout.miss_share, brain.candidates(20, now_s=NOW_S)[2].forecast.p95_ms)
        )
    assert told[0][0] == 1
    assert told[1][0] == 0
    assert told[0][1] == told[1][1] > 3 * 1.2


def test_a_brain_that_does_not_correct_keeps_the_profiles_spread() -> None:
    """The ablation changes nothing else."""
    brain = brain_of_four(corrects=False)
    decision = ask(brain, Hint(variant="int8"))
    brain.late(decision, elapsed_ms=500, now_s=NOW_S)
    forecast = brain.candidates(20, now_s=NOW_S)[2].forecast
    assert forecast.p95_ms == pytest.approx(1.2 * forecast.p50_ms)


def test_a_cold_variant_is_wished_for_and_never_chosen() -> None:
    """Its demand is what would start a replica; what was sent counts where it went."""
    brain = brain_of_four()
    brain.set_ready("bf16", ready=False)
    decision = ask(brain, Hint())
    assert name_of(decision) == "fp32"
    assert not brain.is_ready("bf16")
    brain.wish(Hint(), decision, tokens=20, now_s=NOW_S)
    busy = {v: brain.demand.busy(v, now_s=NOW_S) for v in FIDELITIES}
    assert {v for v, engines in busy.items() if engines > 0} == {"bf16", "fp32"}
    unmet = ask(brain, Hint(variant="bf16"))
    assert unmet.chosen is None
    brain.wish(Hint(variant="bf16"), unmet, tokens=20, now_s=NOW_S)
    assert brain.demand.busy("bf16", now_s=NOW_S) == pytest.approx(2 * busy["bf16"])
