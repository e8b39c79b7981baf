"""What one routing decision costs, of six variants with four replicas: a part of `loadtests micro`.

The brain's state is another for each few decisions: idle and queued variants, paces, lateness; two of
five requests are refused. `Brain.decide` is timed by the clock on the wall, which counts what the host and
other processes take meanwhile, and by the processor time of this thread; then the long way, by which
`/v1/route` explains: all forecasts, and the choice among them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from serve_app.manifest import Profile
from serve_app.policy.brain import Brain, Options, VariantFacts
from serve_app.policy.hint import Hint, Quality
from serve_app.policy.replica_state import ReplicaState
from serve_app.policy.routing import Candidate, Terms, decide

VARIANTS, REPLICAS = 6, 4
DECISIONS = 20_000
A_STATE = 50  # decisions
EVERY_S = 0.002  # between decisions
CLIENTS = 9
MOST_CALLS = 2 * REPLICAS
HINTS = (
    *(Hint(budget_ms=budget_ms) for budget_ms in (50, 100, 250, 1000)),
    Hint(quality=Quality(floor=0.99)),
    Hint(),
)
STATES = f"  (decisions of {VARIANTS} variants x {REPLICAS} replicas in changing states)"
TERMS = Terms(30_000.0, reserve_ms=2.0, sheds=True)


@dataclass(frozen=True, slots=True)
class Timed:
    """Microseconds of many runs of one thing, sorted."""

    what: str
    us: list[float]

    def __str__(self) -> str:
        p50, p99 = (self.us[int(len(self.us) * share)] for share in (0.5, 0.99))
        return f"{self.what:<20} p50 {p50:6.1f} us   p99 {p99:6.1f} us"


def measured(decisions: int, *, seed: int = 0) -> Iterator[Timed]:
    """Time whole decisions, then the parts of their explanation in the same states."""

    def whole(brain: Brain, number: int, tokens: int, now_s: float) -> Callable[[], object]:
        hint, client = HINTS[number % len(HINTS)], f"c{number % CLIENTS}"
        return lambda: brain.decide(hint, tokens=tokens, elapsed_ms=0.5, client=client, now_s=now_s)

    def forecasts(brain: Brain, _: int, tokens: int, now_s: float) -> Callable[[], object]:
        return lambda: brain.candidates(tokens, now_s=now_s)

    def choice(brain: Brain, number: int, tokens: int, now_s: float) -> Callable[[], object]:
        found: list[Candidate] = brain.candidates(tokens, now_s=now_s)
        hint = HINTS[number % 4]
        return lambda: decide(hint, found, elapsed_ms=0.5, terms=TERMS)

    for what, part, clock_ns in (
        ("Brain.decide", whole, time.perf_counter_ns),
        ("Brain.decide, CPU", whole, time.thread_time_ns),
        ("  Brain.candidates", forecasts, time.perf_counter_ns),
        ("  routing.decide", choice, time.perf_counter_ns),
    ):
        yield Timed(what, _time(part, decisions, seed, clock_ns))


def _time(
    part: Callable[[Brain, int, int, float], Callable[[], object]],
    decisions: int,
    seed: int,
    clock_ns: Callable[[], int],
) -> list[float]:
    rng, now_s, us = random.Random(seed), 100.0, []  # noqa: S311
    brain = Brain(
        [_facts(i) for i in range(VARIANTS)],
        options=Options(default=Hint(budget_ms=1000, quality=Quality(floor=0.99)), cores=4),
        draw=rng.random,
    )
    with ExitStack() as state:
        for number in range(decisions):
            now_s += EVERY_S
            if number % A_STATE == 0:
                state.close()
                _shuffle(brain, state, rng, now_s)
            run = part(brain, number, rng.choice((8, 12, 40, 130, 400)), now_s)
            started_ns = clock_ns()
            run()
            us.append((clock_ns() - started_ns) / 1000)
    return sorted(us)


def _facts(number: int) -> VariantFacts:
    """Each rung cheaper and a little less faithful than the one before."""
    profile = Profile(
        hardware="a double",
        device="cpu",
        threads=1,
        base_ms=1.0,
        per_token_ms=0.28 / (1 + 0.5 * number),
        spread=1.2,
        batch_tokens=128,
        grid=(),
        load_ms=0.0,
        resident_bytes=0,
    )
    return VariantFacts(variant=f"v{number}", fidelity=1 - 0.002 * number, profile=profile)


def _shuffle(brain: Brain, state: ExitStack, rng: random.Random, now_s: float) -> None:
    """Another state: replies of all replicas, calls and tokens in flight, an outcome each."""
    for number in range(VARIANTS):
        variant = f"v{number}"
        brain.set_ready(variant)
        for replica in range(REPLICAS):
            queued, pace = rng.choice((0, 0, 100, 1000)), rng.uniform(0.8, 3)
            told = ReplicaState(replica=f"r{replica}", queued_tokens=queued, pace=pace)
            brain.saw(variant, told, busy=number, hop_ms=rng.uniform(1, 4), now_s=now_s)
        load, calls = brain.load(variant), rng.randrange(MOST_CALLS + 1)
        load.arrived(rng.randrange(1, 500), now_s=now_s)
        state.enter_context(load.hold(calls * rng.randrange(1, 128)))
        for _ in range(calls):
            state.enter_context(load.call(64, now_s=now_s))
        pinned = brain.judge(
            Hint(variant=variant), tokens=20, elapsed_ms=0.0, client="c0", now_s=now_s
        )
        actual_ms = rng.uniform(5, 50)
        brain.finished(pinned, actual_ms=actual_ms, within_budget=True, now_s=now_s)
