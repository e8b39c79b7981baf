"""The product's own policy inside the simulator: the shipped `Brain`, driven as the router drives it."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import NamedTuple

from loadtests.sim_types import Machine, SimRequest, View
from serve_app.policy.batching import short_batches
from serve_app.policy.brain import Brain, Options, VariantFacts
from serve_app.policy.hint import Hint, Quality
from serve_app.policy.load import Waiting
from serve_app.policy.replica_state import ReplicaState
from serve_app.policy.routing import Decision

DEFAULT_HINT = Hint(budget_ms=1000.0, quality=Quality(floor=0.99))


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """What is taken away from the brain, to see what it is worth."""

    corrects: bool = True
    sees_joiners: bool = True
    sheds: bool = True
    gates: bool = True
    profile_error: float = 1.0  # by which the profiles that the brain is told are too fast
    pin: str | None = None  # what every request asks for


class _Open(NamedTuple):
    decision: Decision
    held: AbstractContextManager[None]
    decided_s: float


class _Left(NamedTuple):
    variant: str
    counted: AbstractContextManager[None]
    busy: int


class BrainPolicy:
    """One router's brain, and how its forecasts came true."""

    def __init__(
        self,
        machine: Machine,
        rng: random.Random,
        *,
        switches: Switches = Switches(),
    ) -> None:
        facts = [
            replace(_mistold(v, switches.profile_error), streams=machine.streams)
            for v in machine.variants
        ]
        options = Options(
            default=DEFAULT_HINT,
            cores=machine.cores,
            corrects=switches.corrects,
            sees_joiners=switches.sees_joiners,
            sheds=switches.sheds,
        )
        self.brain = Brain(facts, options=options, draw=rng.random)
        self._gates = switches.gates
        for v in facts:
            self.brain.set_ready(v.variant)
        self.retry_after_s: float | None = None
        self.forecasts: Counter[tuple[str, int, bool]] = Counter()  # variant, bin, actual <= p95
        self._open: dict[int, _Open] = {}
        self._hints: dict[float, Hint] = {}
        self._pin = switches.pin

    def set_ready(self, variant: str, *, ready: bool) -> None:
        """A variant's first replica is up, or is not yet."""
        self.brain.set_ready(variant, ready=ready)

    def turns_away(self, lag_ms: float, *, now_s: float) -> bool:
        """See `sim_router.Watcher`."""
        if not self._gates:
            return False
        self.brain.lag_ms = lag_ms
        after_s = self.brain.turns_away(now_s=now_s)
        if after_s is not None:
            self.retry_after_s = after_s
        return after_s is not None

    def decide(self, request: SimRequest, view: View, *, now_s: float) -> str | None:
        hint = self._hints.get(request.budget_ms)
        if hint is None:
            hint = self._hints[request.budget_ms] = Hint(
                budget_ms=request.budget_ms, variant=self._pin
            )
        self.brain.lag_ms = view.lag_ms
        decision = self.brain.decide(
            hint,
            tokens=request.tokens,
            elapsed_ms=(now_s - request.arrived_s) * 1000,
            client=request.client,
            now_s=now_s,
        )
        chosen = decision.chosen
        if chosen is None:
            self.retry_after_s = decision.retry_after_s
            return None
        held = self.brain.hold(chosen, tokens=request.tokens, now_s=now_s)
        held.__enter__()
        self._open[request.number] = _Open(decision, held, now_s)
        return chosen.variant

    def finished(
        self, request: SimRequest, variant: str, *, latency_ms: float, now_s: float
    ) -> None:
        decision, held, decided_s = self._open.pop(request.number)
        held.__exit__(None, None, None)
        actual_ms = (now_s - decided_s) * 1000
        in_time = latency_ms <= request.budget_ms
        self.brain.finished(decision, actual_ms=actual_ms, within_budget=in_time, now_s=now_s)
        self._judge(decision, variant, actual_ms, ended=True)

    def late(self, request: SimRequest, variant: str, *, now_s: float) -> None:
        decision, held, decided_s = self._open.pop(request.number)
        held.__exit__(None, None, None)
        elapsed_ms = (now_s - decided_s) * 1000
        hung_up = now_s < request.arrived_s + request.budget_ms / 1000
        self.brain.late(decision, elapsed_ms=elapsed_ms, now_s=now_s, hung_up=hung_up)
        self._judge(decision, variant, elapsed_ms, ended=False)

    def wait_in_line(self, request: SimRequest, variant: str, *, now_s: float) -> Waiting:
        """See `sim_router.Watcher`."""
        chosen = self._open[request.number].decision.chosen
        place_ms = chosen.forecast.place_ms if chosen is not None else 0.0
        load = self.brain.load(variant)
        return load.wait_in_line(request.tokens, place_ms=place_ms, now_s=now_s)

    def can_make_it(self, variant: str, tokens: int, *, left_ms: float) -> bool:
        """See `sim_router.Watcher`."""
        return self.brain.load(variant).can_make_it(tokens, left_ms=left_ms)

    def call_left(self, variant: str, tokens: int, *, now_s: float) -> _Left:
        """See `sim_router.Watcher`."""
        busy = self.brain.busy_with(variant, now_s=now_s)
        counted = self.brain.load(variant).call(tokens, now_s=now_s)
        counted.__enter__()
        return _Left(variant, counted, busy)

    def call_ended(self, left: _Left) -> None:
        """See `sim_router.Watcher`."""
        left.counted.__exit__(None, None, None)

    def saw(self, left: _Left, state: ReplicaState, *, hop_ms: float, now_s: float) -> None:
        """See `sim_router.Watcher`."""
        self.brain.saw(left.variant, state, busy=left.busy, hop_ms=hop_ms, now_s=now_s)

    def _judge(self, decision: Decision, variant: str, actual_ms: float, *, ended: bool) -> None:
        """Whether p95 held. Let in at risk, a request may end before its p95: nobody knows then."""
        chosen = decision.chosen
        if chosen is None or decision.at_risk:
            return
        within = actual_ms <= chosen.forecast.p95_ms
        if ended or not within:
            self.forecasts[variant, chosen.forecast.bin, within] += 1


def _mistold(facts: VariantFacts, error: float) -> VariantFacts:
    """A variant whose profile says that it is so many times faster than it is."""
    profile = replace(
        short_batches(facts.profile),
        base_ms=facts.profile.base_ms / error,
        per_token_ms=facts.profile.per_token_ms / error,
    )
    return replace(facts, profile=profile)
