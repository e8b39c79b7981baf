"""What the brain keeps to in any state."""

from contextlib import ExitStack

from hypothesis import example, given, settings
from hypothesis import strategies as st

from serve_app.policy.hint import Hint, Quality
from serve_app.policy.routing import FIDELITY_TIE
from tests.policy.brains import FIDELITIES, ask
from tests.policy.states import CROWDED, STATES, State

FLOORS = st.floats(0.9, 1.0) | st.sampled_from([*FIDELITIES.values(), 0.99])


@given(STATES, FLOORS, st.none() | st.floats(1, 3000), st.integers(1, 600))
def test_an_explicit_floor_is_never_broken(
    state: State, floor: float, budget_ms: float | None, tokens: int
) -> None:
    """In any state and at any level of brownout: a request that says its floor gets it or nothing."""
    with ExitStack() as stack:
        hint = Hint(budget_ms=budget_ms, quality=Quality(floor=floor))
        chosen = ask(state.enter(stack), hint, tokens=tokens).chosen
        assert chosen is None or chosen.fidelity >= floor


BUSY_INT8 = State([0, 0, 1, 0], [1.0, 4.0, 1.0, 1.0], [False] * 4, 0, stands_s=0.5)


@settings(max_examples=500)
@given(CROWDED, st.floats(1, 2000), st.floats(0, 2000), st.integers(1, 600))
@example(
    BUSY_INT8, 178.0, 459.0, 285
)  # which is worth more than BF16, but only the larger budget can wait for
def test_a_larger_budget_never_lowers_fidelity(
    state: State, budget_ms: float, more_ms: float, tokens: int
) -> None:
    """By no more than the tie of 0.001, in one state; unless the smaller was at risk."""
    with ExitStack() as stack:
        brain, now_s = state.enter(stack), state.now_s()
        tight, loose = (
            brain.judge(Hint(budget_ms=ms), tokens=tokens, elapsed_ms=0, client="a", now_s=now_s)
            for ms in (budget_ms, budget_ms + more_ms)
        )
        if tight.chosen is not None and not tight.at_risk:
            assert loose.chosen is not None
            assert loose.chosen.fidelity >= tight.chosen.fidelity - FIDELITY_TIE - 1e-12


@given(STATES, st.floats(1, 3000), st.integers(1, 600))
def test_no_429_while_a_feasible_variant_exists(
    state: State, budget_ms: float, tokens: int
) -> None:
    """Whoever can be served in time is."""
    with ExitStack() as stack:
        decision = ask(state.enter(stack), Hint(budget_ms=budget_ms), tokens=tokens)
        found = decision.grounds.candidates
        limit = decision.grounds.limit
        feasible = [c for c in found if c.forecast.p95_ms <= limit.left_ms]
        assert decision.chosen is not None or not feasible
