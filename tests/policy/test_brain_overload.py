"""The brain when there is too much to do: who gets less, and who gives way."""

from contextlib import ExitStack

import pytest

from serve_app.policy.brownout import FEWEST
from serve_app.policy.hint import Hint, Quality
from serve_app.policy.returns import LEAST_RETRY_S
from serve_app.policy.routing import BUDGET_REASON, RENT_REASON, Decision
from tests.policy.brains import (
    FIDELITIES,
    NOW_S,
    PER_TOKEN_MS,
    ask,
    brain_of_four,
    brown_out,
    name_of,
    queue,
)


def test_refusals_raise_the_level_and_jitter_their_retry() -> None:
    """Clients that are refused together are told times apart, and in an overload they come in turn."""
    brain = brain_of_four()
    found = []
    with ExitStack() as stack:
        for variant in FIDELITIES:
            queue(stack, brain, variant, 50_000)
        for _ in range(FEWEST):
            decision = ask(brain, Hint(budget_ms=100))
            assert decision.chosen is None
            assert decision.retry_after_s is not None
            found.append(decision.retry_after_s)
        judged = brain.judge(
            Hint(budget_ms=100), tokens=20, elapsed_ms=0, client="a", now_s=NOW_S
        ).retry_after_s
    assert judged is not None
    before, last = found[: FEWEST - 1], found[-1]
    assert all(judged <= retry_after_s <= 1.5 * judged for retry_after_s in before)
    assert len(set(found)) == FEWEST
    assert last >= judged
    assert brain.brownout.level == 1


@pytest.mark.parametrize(("level", "variant"), [(0, "bf16"), (1, "bf16"), (2, "int8"), (3, "int4")])
def test_brownout_lowers_the_default_floor_only(level: int, variant: str) -> None:
    """Who asked for nothing gets less, and the reason says so; any hint of one's own is untouched."""
    brain = brain_of_four()
    brown_out(brain, level)
    decision = ask(brain, Hint())
    assert name_of(decision) == variant
    assert (f"brownout level {level}" in decision.reason) == bool(level)
    for hint, expected in (
        (Hint(quality=Quality(floor=0.99)), "bf16"),
        (Hint(quality=Quality(best=True)), "fp32"),
        (Hint(budget_ms=1000), "bf16"),
        (Hint(variant="fp32"), "fp32"),
    ):
        assert name_of(ask(brain, hint)) == expected


def test_under_brownout_the_large_client_is_refused_first() -> None:
    """Of two clients at 9 : 1 the large one may fill half of a budget only; in quiet both are served."""
    for level in (0, 1):
        brain = brain_of_four()
        brown_out(brain, level)
        for i in range(100):
            ask(brain, Hint(budget_ms=1000), client="small" if i % 10 == 0 else "large")
        with ExitStack() as stack:
            for variant in FIDELITIES:
                queue(stack, brain, variant, round(60 / PER_TOKEN_MS[variant]))
            brain.brownout.level = level
            small, large = (
                ask(brain, Hint(budget_ms=120), client=name) for name in ("small", "large")
            )
        assert small.chosen is not None
        assert (large.chosen is None) == bool(level)
        if level:
            assert "over its share" in large.reason


def test_the_busier_the_cores_the_shorter_must_a_text_be_for_the_best_variant() -> None:
    """Nobody is refused for it, and a pin is kept; in quiet, and while nothing runs, all have the best."""
    brain, now_s = brain_of_four(), NOW_S

    def long_text(**hint: str) -> Decision:
        return ask(brain, Hint(budget_ms=5000, **hint), tokens=500, now_s=now_s)

    assert name_of(long_text()) == "bf16"
    for _ in range(100):
        now_s += 0.01
        ask(brain, Hint(budget_ms=5000), tokens=200, now_s=now_s)
    assert name_of(long_text()) == "bf16"
    with brain.load("int4").call(100, now_s=now_s):
        assert (name_of(long_text()), long_text().reason) == ("int4", RENT_REASON)
        short = ask(brain, Hint(budget_ms=5000), tokens=2, now_s=now_s)
        assert (name_of(short), short.reason) == ("bf16", BUDGET_REASON)
        assert name_of(long_text(variant="fp32")) == "fp32"
        now_s += 10
        assert name_of(long_text()) == "bf16"


def test_in_an_overload_the_refused_come_back_in_turn() -> None:
    """Each later than the one before, by what there is room for, whatever the queue says."""
    brain = brain_of_four()
    with ExitStack() as stack:
        for variant in FIDELITIES:
            queue(stack, brain, variant, 50_000)
        found = [ask(brain, Hint(budget_ms=100)).retry_after_s or 0.0 for _ in range(2 * FEWEST)]
    tail = found[FEWEST:]
    assert tail[-1] > 2 * max(found[: FEWEST - 1])
    assert max(tail) > 1.5 * min(tail)


def test_at_the_door_a_lagging_router_turns_away_and_tells_when_to_come_back() -> None:
    """Only while it lags and misses; never more than it must, and never without a time."""
    brain = brain_of_four()
    for i in range(1000):
        now_s = NOW_S + 0.01 * i
        brain.brownout.tell(missed=True, now_s=now_s)
        brain.lag_ms = 0.0
        assert brain.turns_away(now_s=now_s) is None
    told = []
    for i in range(1000, 1500):
        now_s = NOW_S + 0.01 * i
        brain.brownout.tell(missed=True, now_s=now_s)
        brain.lag_ms = 2000.0
        told.append(brain.turns_away(now_s=now_s))
    turned = [after_s for after_s in told if after_s is not None]
    assert told[0] is None
    assert len(told) > len(turned) > len(told) / 2
    assert min(turned) >= LEAST_RETRY_S
