"""What the brain keeps to in any state."""

from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.brain import Brain
from serve_app.policy.hint import Hint, Quality
from serve_app.policy.load import ReplicaState
from serve_app.policy.routing import FIDELITY_TIE
from tests.policy.brains import (
    FIDELITIES,
    NOW_S,
    ask,
    brain_of_four,
    queue,
)


class State:
    """Some state of a brain: what is queued, at what pace, how late, at which level of brownout."""

    def __init__(
        self, queued: list[int], paces: list[float], lates: list[bool], level: int
    ) -> None:
        self.queued = queued
        self.paces = paces
        self.lates = lates
        self.level = level

    def enter(self, stack: ExitStack) -> Brain:
        brain = brain_of_four()
        for i, (variant, tokens) in enumerate(zip(FIDELITIES, self.queued, strict=False)):
            state = ReplicaState(replica="r", queued_tokens=tokens // 2, pace=self.paces[i])
            brain.saw(variant, state, busy=i + 1, hop_ms=1.0, now_s=NOW_S)
            if tokens:
                queue(stack, brain, variant, tokens)
            for _ in range(20 * self.lates[i]):
                decision = brain.judge(
                    Hint(variant=variant), tokens=20, elapsed_ms=0, client="a", now_s=NOW_S
                )
                if decision.chosen is not None:
                    brain.late(decision, elapsed_ms=1e5, now_s=NOW_S)
        brain.brownout.level = self.level
        return brain


STATES = st.builds(
    State,
    queued=st.lists(st.just(0) | st.integers(1, 5000), min_size=4, max_size=4),
    paces=st.lists(st.floats(0.5, 4), min_size=4, max_size=4),
    lates=st.lists(st.booleans(), min_size=4, max_size=4),
    level=st.integers(0, 3),
)
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


@given(STATES, st.floats(1, 2000), st.floats(0, 2000), st.integers(1, 600))
def test_a_larger_budget_never_lowers_fidelity(
    state: State, budget_ms: float, more_ms: float, tokens: int
) -> None:
    """By no more than the tie of 0.001, in one state with no prices; unless the smaller was at risk."""
    with ExitStack() as stack:
        brain = state.enter(stack)
        tight, loose = (
            ask(brain, Hint(budget_ms=ms), tokens=tokens) for ms in (budget_ms, budget_ms + more_ms)
        )
        if tight.chosen is not None and not tight.at_risk:
            assert loose.chosen is not None
            assert loose.chosen.fidelity >= tight.chosen.fidelity - FIDELITY_TIE - 1e-12


@given(STATES, st.floats(1, 3000), st.integers(1, 600))
def test_no_429_while_a_feasible_variant_exists(
    state: State, budget_ms: float, tokens: int
) -> None:
    """While no queue has stood long enough for a price, whoever can be served in time is."""
    with ExitStack() as stack:
        decision = ask(state.enter(stack), Hint(budget_ms=budget_ms), tokens=tokens)
        found = decision.grounds.candidates
        limit = decision.grounds.limit
        assert all(c.price == 0 for c in found)
        feasible = [c for c in found if c.forecast.p95_ms <= limit.left_ms]
        assert decision.chosen is not None or not feasible
