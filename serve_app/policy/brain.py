"""The routing brain: all that one router knows of its variants, and what it decides from it.

The router and the simulator drive the same object; each brings its own clock and random numbers.

    brain.decide(...)              filter → score → pick, with forecasts made now
    with brain.hold(...):          tokens in flight, given back however the request ends
        with load.call(...):       a call carries them to a replica
        brain.saw(...)             a reply: the replica's state, its pace, the hop
    brain.finished(...) | late(...)  the forecast learns what became of it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import exp, log

from serve_app.manifest import Profile
from serve_app.policy.brownout import Brownout
from serve_app.policy.contention import Contention
from serve_app.policy.correction import Correction
from serve_app.policy.demand import Demand
from serve_app.policy.fairness import Shares
from serve_app.policy.forecast import LOAD_BINS, SIZE_BINS, Forecast, batches_ms, median
from serve_app.policy.hint import Hint, Quality
from serve_app.policy.load import ReplicaState, VariantLoad
from serve_app.policy.price import Price
from serve_app.policy.routing import Candidate, Decision, Terms, decide

LEGS = 2  # a call waits for the router's thread when it leaves, and its reply once more
RETRY_JITTER = 0.5  # Retry-After grows by up to half: clients refused together shall not return so
OVER_SHARE_MAY_FILL = 0.5  # of a budget, while something must be shed


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFacts:
    """What is known of a variant before any request."""

    variant: str
    fidelity: float
    profile: Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a brain is told; the switches are for the simulator's ablations."""

    default: Hint  # of requests that bring none
    cores: float  # that engines share on a host
    max_wait_ms: float = 30_000.0
    reserve_ms: float = 2.0
    corrects: bool = True
    sees_joiners: bool = True
    sheds: bool = True  # brownout, fairness, and refusing what cannot make it


class _Variant:
    """One variant's facts, load and correction together."""

    __slots__ = ("cold", "correction", "fidelity", "load", "name", "price", "spread")

    def __init__(self, facts: VariantFacts) -> None:
        self.name = facts.variant
        self.fidelity = facts.fidelity
        self.spread = facts.profile.spread
        self.load = VariantLoad(facts.profile)
        self.correction = Correction(spread=facts.profile.spread, bins=LOAD_BINS * SIZE_BINS)
        self.price = Price()
        self.cold = True


class Brain:
    """One router's view of all variants. Times are seconds on the caller's clock.

    `lag_ms` is for the router to set: how long what it has to do waits for its only thread now.
    """

    def __init__(
        self, variants: Sequence[VariantFacts], *, options: Options, draw: Callable[[], float]
    ) -> None:
        """Nothing is known yet but the profiles.

        Args:
            variants: one at least.
            options: what holds for all requests.
            draw: uniform random numbers from 0 to 1.
        """
        self._options = options
        self._terms_always = Terms(
            options.max_wait_ms, reserve_ms=options.reserve_ms, sheds=options.sheds
        )
        self._draw = draw
        self.lag_ms = 0.0
        self._variants = {facts.variant: _Variant(facts) for facts in variants}
        self._contention = Contention(cores=options.cores)
        self._shares = Shares()
        self.demand = Demand([facts.variant for facts in variants])
        floor = options.default.quality.floor if options.default.quality else 0.0
        self.brownout = Brownout(floor=floor, fidelities=[f.fidelity for f in variants])

    def load(self, variant: str) -> VariantLoad:
        """A variant's load, which its lane keeps up to date."""
        return self._variants[variant].load

    def set_ready(self, variant: str, *, ready: bool = True) -> None:
        """A variant has a replica, or has none any more: then it is wished for, never chosen."""
        self._variants[variant].cold = not ready

    def is_ready(self, variant: str) -> bool:
        return not self._variants[variant].cold

    def decide(
        self, hint: Hint, *, tokens: int, elapsed_ms: float, client: str, now_s: float
    ) -> Decision:
        """Choose a variant for a request, and remember what was asked.

        Args:
            hint: as the client sent it; a pinned variant is deployed.
            tokens: of all its texts.
            elapsed_ms: what has passed of its budget.
            client: who asks, by API key or address.
            now_s: when.
        """
        self._shares.asked(client, tokens, now_s=now_s)
        decision = self.judge(
            hint, tokens=tokens, elapsed_ms=elapsed_ms, client=client, now_s=now_s
        )
        if decision.chosen is None and decision.retry_after_s is not None:
            self.brownout.tell(missed=True, now_s=now_s)
            jitter = 1 + RETRY_JITTER * self._draw()
            return replace(decision, retry_after_s=decision.retry_after_s * jitter)
        return decision

    def judge(
        self, hint: Hint, *, tokens: int, elapsed_ms: float, client: str, now_s: float
    ) -> Decision:
        """As `decide`, and remember nothing."""
        asked = hint.or_default(self._options.default)
        terms = self._terms(client)
        if asked is not hint and self.brownout.level:
            asked = replace(asked, quality=Quality(floor=self.brownout.floor))
            terms = terms._replace(
                cheapest=True, note=f"{terms.note}; brownout level {self.brownout.level}"
            )
        return decide(
            asked, self.candidates(tokens, now_s=now_s), elapsed_ms=elapsed_ms, terms=terms
        )

    def _terms(self, client: str) -> Terms:
        options = self._options
        if options.sheds and self.brownout.level and self._shares.is_over(client):
            return self._terms_always._replace(
                tightened=OVER_SHARE_MAY_FILL, note="; the client is over its share"
            )
        return self._terms_always

    def candidates(self, tokens: int, *, now_s: float) -> list[Candidate]:
        """All variants as a request of `tokens` tokens sees them now."""
        busy = self._busy(now_s)
        joining, adding = self._contention.at(busy), self._contention.at(busy + 1)
        corrects, joiners = self._options.corrects, self._options.sees_joiners
        lag_ms = LEGS * self.lag_ms
        found = []
        for v in self._variants.values():
            load = v.load
            queue = load.queue(now_s)
            pace, hop_ms = adding if queue is None else joining
            wait_ms, service_ms, number = median(load.profile, queue, tokens, pace, joiners)
            service_ms += hop_ms + lag_ms
            spread = exp(v.correction.theta(number, now_s)) if corrects else v.spread
            forecast = Forecast(wait_ms, service_ms, (wait_ms + service_ms) * spread, number)
            price = tokens * v.price.look(wait_ms, now_s)
            found.append(Candidate(v.name, v.fidelity, load.cost_ms, forecast, v.cold, price))
        return found

    def _busy(self, now_s: float) -> int:
        return sum([v.load.busy(now_s) for v in self._variants.values() if v.load.calls])

    @contextmanager
    def hold(self, chosen: Candidate, *, tokens: int, now_s: float) -> Iterator[None]:
        """Count an admitted request's tokens as in flight."""
        variant = self._variants[chosen.variant]
        variant.load.arrived(tokens, now_s=now_s)
        with variant.load.hold(tokens):
            yield

    def wish(self, hint: Hint, decision: Decision, *, tokens: int, now_s: float) -> None:
        """Remember which variant a request would have had if all were up and idle.

        Off the hot path: call it once the request is on its way.
        """
        asked = hint.or_default(self._options.default)
        idle = [self._idle(v, tokens) for v in self._variants.values()]
        first = decide(asked, idle, elapsed_ms=0.0, terms=self._terms_always).chosen
        if first is not None:
            work_ms = batches_ms(self._variants[first.variant].load.profile, tokens)
            self.demand.wanted(first.variant, work_ms, now_s=now_s)
        if (chosen := decision.chosen) is not None:
            work_ms = batches_ms(self._variants[chosen.variant].load.profile, tokens)
            self.demand.sent(chosen.variant, work_ms, now_s=now_s)

    def _idle(self, v: _Variant, tokens: int) -> Candidate:
        profile = v.load.profile
        service_ms = batches_ms(profile, tokens) + self._contention.at(1)[1]
        p95_ms = service_ms * profile.spread
        found = Forecast(wait_ms=0.0, service_ms=service_ms, p95_ms=p95_ms)
        return Candidate(v.name, v.fidelity, profile.cost_ms, found)

    def busy_with(self, variant: str, *, now_s: float) -> int:
        """Busy engines, one of this variant's replicas among them: to note when a call leaves."""
        load = self._variants[variant].load
        return self._busy(now_s) + (load.calls < load.count(now_s))

    def saw(
        self, variant: str, state: ReplicaState, *, busy: int, hop_ms: float, now_s: float
    ) -> None:
        """A reply came back.

        Args:
            variant: whose.
            state: what the replica says of itself.
            busy: engines that were busy when the call left, its own included.
            hop_ms: what the call took beside queue and engine.
            now_s: when.
        """
        self._variants[variant].load.saw(state, now_s=now_s)
        self._contention.learn(busy, pace=state.pace, hop_ms=hop_ms)

    def finished(
        self, decision: Decision, *, actual_ms: float, within_budget: bool, now_s: float
    ) -> None:
        """The vectors are there, `actual_ms` after the decision."""
        chosen = decision.chosen
        assert chosen is not None  # noqa: S101  # only admitted requests finish
        variant, found = self._variants[chosen.variant], chosen.forecast
        variant.load.learn(predicted_ms=found.p50_ms, actual_ms=actual_ms)
        ratio = max(actual_ms, 0.001) / max(found.p50_ms, 0.001)
        variant.correction.learn(found.bin, log_ratio=log(ratio), now_s=now_s)
        self.brownout.tell(missed=not within_budget, now_s=now_s)

    def late(self, decision: Decision, *, elapsed_ms: float, now_s: float) -> None:
        """The request timed out or was cancelled `elapsed_ms` after the decision."""
        chosen = decision.chosen
        assert chosen is not None  # noqa: S101
        ratio = max(elapsed_ms, 0.001) / max(chosen.forecast.p50_ms, 0.001)
        correction = self._variants[chosen.variant].correction
        correction.learn(chosen.forecast.bin, log_ratio=log(ratio), now_s=now_s, is_over=False)
        self.brownout.tell(missed=True, now_s=now_s)
