"""The short way to a decision says what the long way says."""

from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.hint import Hint, Quality
from serve_app.policy.routing import Candidate
from tests.policy.brains import FIDELITIES, NOW_S, ask, brain_of_four, queue
from tests.policy.states import CROWDED, State

HINTS = st.builds(
    Hint,
    budget_ms=st.none() | st.floats(1, 3000),
    quality=st.none()
    | st.just(Quality(best=True))
    | st.builds(Quality, floor=st.floats(0.9, 1) | st.sampled_from([*FIDELITIES.values()])),
    variant=st.none() | st.sampled_from([*FIDELITIES]),
)
TOKENS = st.integers(1, 600)


def _seen(candidate: Candidate) -> Candidate:
    """What a decision tells of it; the rest is for the long way to the choice."""
    return candidate._replace(soon_ms=None)


@given(CROWDED, HINTS, TOKENS, st.floats(0, 0.6), st.sampled_from(["small", "large"]))
def test_a_decision_is_what_judging_with_all_forecasts_says(
    state: State, hint: Hint, tokens: int, passed_s: float, client: str
) -> None:
    """In any state: the same choice for the same reason, the same refusal, the same forecasts."""
    with ExitStack() as stack:
        brain = state.enter(stack)
        now_s = state.now_s() + passed_s
        for _ in range(9):
            brain._shares.asked("large", 5000, now_s=now_s)
        judged = brain.judge(hint, tokens=tokens, elapsed_ms=0, client=client, now_s=now_s)
        decided = ask(brain, hint, tokens=tokens, client=client, now_s=now_s)
        assert decided.chosen == (judged.chosen and _seen(judged.chosen))
        for name in ("reason", "at_risk", "budget_ms", "refused_for"):
            assert getattr(decided, name) == getattr(judged, name)
        assert (decided.retry_after_s is None) == (judged.retry_after_s is None)
        known = {c.variant: _seen(c) for c in judged.grounds.candidates}
        told = decided.grounds
        assert all(known[c.variant] == c for c in told.candidates)
        assert (told.hint, told.limit, told.floor) == (
            judged.grounds.hint,
            judged.grounds.limit,
            judged.grounds.floor,
        )
        assert decided.chosen is not None or len(told.candidates) == len(known)


@given(CROWDED, HINTS, TOKENS)
def test_every_variant_is_chosen_or_rejected_for_a_reason(
    state: State, hint: Hint, tokens: int
) -> None:
    """Also those that were not forecast."""
    with ExitStack() as stack:
        decision = ask(state.enter(stack), hint, tokens=tokens, now_s=state.now_s())
        named = [r.variant for r in decision.rejected]
        assert all(r.reason for r in decision.rejected)
        chosen = [] if decision.chosen is None else [decision.chosen.variant]
        assert sorted(named + chosen) == sorted(FIDELITIES)


def test_a_decision_tells_of_its_own_moment_whenever_it_is_asked() -> None:
    """Later decisions in other states change nothing of what an earlier one was made from."""
    brain = brain_of_four()
    with ExitStack() as stack:
        queue(stack, brain, "fp32", 700)
        before = brain.candidates(20, left_ms=198, now_s=NOW_S)[0]
        first = ask(brain, Hint(budget_ms=200))
        queue(stack, brain, "bf16", 5000)
        ask(brain, Hint(budget_ms=200), tokens=400, now_s=NOW_S + 1)
        assert first.grounds.candidates[0] == _seen(before)
        assert {r.variant for r in first.rejected} == {"fp32", "int8", "int4"}


def test_what_cannot_be_the_choice_is_not_forecast() -> None:
    """The best fits and the cores are idle: nothing that follows could be worth more."""
    decision = ask(brain_of_four(), Hint(budget_ms=1000))
    assert [c.variant for c in decision.grounds.candidates] == ["fp32", "bf16"]
    assert {r.variant: r.reason for r in decision.rejected} == {
        "fp32": "costs 1.9 times as much as bf16",
        "int8": "fidelity 0.985000, bf16 has 0.999500 and fits",
        "int4": "fidelity 0.960000, bf16 has 0.999500 and fits",
    }
