"""Random states of a brain."""

from contextlib import ExitStack

from hypothesis import strategies as st

from serve_app.policy.brain import Brain
from serve_app.policy.hint import Hint
from serve_app.policy.replica_state import ReplicaState
from serve_app.policy.turns import PLACES_MS
from tests.policy.brains import FIDELITIES, NOW_S, ask, brain_of_four, queue

LOOKS_EVERY_S = 0.1


class State:
    """Some state of a brain: what is queued, at what pace, how late, at which level of brownout."""

    def __init__(  # noqa: PLR0913  # what hypothesis draws
        self,
        queued: list[int],
        paces: list[float],
        lates: list[bool],
        level: int,
        *,
        calls: int = 1,
        streams: int = 1,
        cores: float = 2,
        waiting: int = 0,
        stands_s: float = 0.0,
    ) -> None:
        self.queued = queued
        self.paces = paces
        self.lates = lates
        self.level = level
        self.calls = calls  # that carry what is queued at each variant
        self.streams = streams
        self.cores = cores
        self.waiting = waiting  # texts in line at each of those, one in each of the first places
        self.stands_s = stands_s  # for so long requests come, which gives the cores their rent

    def enter(self, stack: ExitStack) -> Brain:
        brain = brain_of_four(streams=self.streams, cores=self.cores)
        for i, (variant, tokens) in enumerate(zip(FIDELITIES, self.queued, strict=False)):
            state = ReplicaState(replica="r", queued_tokens=tokens // 2, pace=self.paces[i])
            brain.saw(variant, state, busy=i + 1, hop_ms=1.0, now_s=NOW_S)
            if tokens:
                queue(stack, brain, variant, tokens)
                for _ in range(1, self.calls):
                    stack.enter_context(brain.load(variant).call(0, now_s=NOW_S))
                for place_ms in PLACES_MS[: self.waiting]:
                    brain.load(variant).wait_in_line(tokens // 4, place_ms=place_ms, now_s=NOW_S)
            for _ in range(20 * self.lates[i]):
                decision = brain.judge(
                    Hint(variant=variant), tokens=20, elapsed_ms=0, client="a", now_s=NOW_S
                )
                if decision.chosen is not None:
                    brain.late(decision, elapsed_ms=1e5, now_s=NOW_S)
        for step in range(round(self.stands_s / LOOKS_EVERY_S)):
            ask(brain, Hint(budget_ms=1e6), tokens=100, now_s=self.now_s(step))
        brain.brownout.level = self.level
        return brain

    def now_s(self, step: int | None = None) -> float:
        """When it has stood so often or, without a number, for long enough."""
        steps = round(self.stands_s / LOOKS_EVERY_S) if step is None else step
        return NOW_S + LOOKS_EVERY_S * (steps + (step is not None))


STATES = st.builds(
    State,
    queued=st.lists(st.just(0) | st.integers(1, 5000), min_size=4, max_size=4),
    paces=st.lists(st.floats(0.5, 4), min_size=4, max_size=4),
    lates=st.lists(st.booleans(), min_size=4, max_size=4),
    level=st.integers(0, 3),
)
CROWDED = st.builds(
    State,
    queued=st.lists(st.just(0) | st.integers(1, 5000), min_size=4, max_size=4),
    paces=st.lists(st.floats(0.5, 4), min_size=4, max_size=4),
    lates=st.lists(st.booleans(), min_size=4, max_size=4),
    level=st.integers(0, 3),
    calls=st.integers(1, 3),
    streams=st.integers(1, 3),
    cores=st.sampled_from([2, 16]),
    waiting=st.integers(0, 6),
    stands_s=st.floats(0, 1),
)
