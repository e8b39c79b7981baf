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
from dataclasses import replace
from math import inf, log

from serve_app.policy.batching import may_leave
from serve_app.policy.brownout import Brownout
from serve_app.policy.decision import Candidate, Decision, Terms
from serve_app.policy.demand import Demand
from serve_app.policy.fairness import Shares
from serve_app.policy.forecast import Forecast, batches_ms, size_bin
from serve_app.policy.gate import Gate
from serve_app.policy.hint import Hint, Quality
from serve_app.policy.load import VariantLoad
from serve_app.policy.options import Options, VariantFacts
from serve_app.policy.outlook import Looked, Moment, Outlook
from serve_app.policy.pool import Pool
from serve_app.policy.refusal import refuse
from serve_app.policy.replica_state import ReplicaState
from serve_app.policy.returns import Returns
from serve_app.policy.routing import choose, decide, fidelity_floor, time_left_ms
from serve_app.policy.turns import place_of

__all__ = ["Brain", "Options", "VariantFacts"]

LEGS = 2  # a call waits for the router's thread when it leaves, and its reply once more
RETRY_JITTER = 0.5  # Retry-After grows by up to half: clients refused together shall not return so
CROWDED = 0.05  # of requests that miss: then those refused come back in turn
OVER_SHARE_MAY_FILL = 0.5  # of a budget, while something must be shed


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
        self._default = replace(options.default, variant=None)
        self._quiet = Terms(options.max_wait_ms, reserve_ms=options.reserve_ms, sheds=options.sheds)
        self._by_level: dict[tuple[int, bool, bool], tuple[Hint, Terms]] = {}
        self._draw = draw
        self.lag_ms = 0.0
        self._moment = Moment(corrects=options.corrects, joiners=options.sees_joiners)
        cores = Pool(cores=options.cores)
        self._rows = tuple(
            Outlook(one, self._moment, cores if one.on_cores else Pool(cores=1.0, is_shared=False))
            for one in variants
        )
        by_cost = sorted(self._rows, key=lambda row: -row.cost)
        self._pools = tuple({id(row.pool): (row.pool, row) for row in by_cost}.values())
        self._variants = {row.variant: row for row in self._rows}
        self._ranked = tuple(sorted(self._rows, key=lambda row: -row.fidelity))
        self._best = self._ranked[0].fidelity
        least = self._ranked[-1].fidelity
        self._scale = least, self._best - least or 1.0
        self._shares = Shares()
        self.gate = Gate(draw=draw)
        self._returns = Returns(draw=draw)
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
        self,
        hint: Hint,
        *,
        tokens: int,
        texts: int = 1,
        elapsed_ms: float,
        client: str,
        now_s: float,
    ) -> Decision:
        """Choose a variant for a request, and remember what was asked.

        Args:
            hint: as the client sent it; a pinned variant is deployed.
            tokens: of all its texts.
            texts: how many they are.
            elapsed_ms: what has passed of its budget.
            client: who asks, by API key or address.
            now_s: when.
        """
        self._shares.asked(client, tokens, now_s=now_s)
        self.gate.saw(hint.budget_ms, now_s=now_s)
        asked, terms = self._asked(hint, client)
        left_ms = time_left_ms(asked, terms, elapsed_ms=elapsed_ms)
        self._begin(tokens, texts, left_ms, now_s, bounded=asked.budget_ms is not None)
        decision = self._decide(asked, terms, left_ms, now_s=now_s)
        for pool, cheapest in self._pools:
            pool.asked(cheapest.load.work_ms(tokens, texts=texts), now_s=now_s)
        return decision

    def _decide(self, asked: Hint, terms: Terms, left_ms: float, *, now_s: float) -> Decision:
        """Filter, score, pick; a refusal is told to the brownout."""
        floor, ranked = fidelity_floor(asked, self._best), self._ranked
        row, reason, at_risk = choose(asked, ranked, left_ms, floor, terms, self._scale)
        chosen = None if row is None else row.candidate()
        record = Looked(asked, self._rows, left_ms, floor, chosen, self._moment)
        if chosen is not None:
            return Decision(
                chosen=chosen,
                reason=reason,
                at_risk=at_risk,
                budget_ms=asked.budget_ms,
                grounds=record,
            )
        decision = refuse(asked, ranked, left_ms, floor, terms, record)
        if decision.retry_after_s is not None:
            self.brownout.tell(missed=True, now_s=now_s)
            decision.retry_after_s *= 1 + RETRY_JITTER * self._draw()
            if self.brownout.misses(now_s=now_s) > CROWDED:
                in_turn_s = self._returns.next_s(now_s=now_s)
                decision.retry_after_s = max(decision.retry_after_s, in_turn_s)
        return decision

    def turns_away(self, *, now_s: float) -> float | None:
        """Whether a request at the router's door is refused unread; see `gate.py`.

        Returns:
            None where it comes in; else after how many seconds it may come again.
        """
        misses = self.brownout.misses(now_s=now_s)
        if not self.gate.turns_away(self.lag_ms, miss_share=misses, now_s=now_s):
            return None
        return self._returns.next_s(now_s=now_s)

    def judge(
        self,
        hint: Hint,
        *,
        tokens: int,
        texts: int = 1,
        elapsed_ms: float,
        client: str,
        now_s: float,
    ) -> Decision:
        """As `decide`, with all forecasts, and remember nothing."""
        asked, terms = self._asked(hint, client)
        left_ms = None
        if asked.budget_ms is not None:
            left_ms = time_left_ms(asked, terms, elapsed_ms=elapsed_ms)
        candidates = self.candidates(tokens, texts=texts, left_ms=left_ms, now_s=now_s)
        return decide(asked, candidates, elapsed_ms=elapsed_ms, terms=terms)

    def _asked(self, hint: Hint, client: str) -> tuple[Hint, Terms]:
        """What a request is decided by."""
        level = self.brownout.level
        bare = hint.budget_ms is None and hint.quality is None and hint.variant is None
        if not level:
            return self._default if bare else hint, self._quiet
        over = self._options.sheds and self._shares.is_over(client)
        asked, terms = self._browned_out(level, bare=bare, over=over)
        return asked if bare else hint, terms

    def _browned_out(self, level: int, *, bare: bool, over: bool) -> tuple[Hint, Terms]:
        """At a level of brownout: what holds for those without a hint, and for those over their share."""
        known = self._by_level.get((level, bare, over))
        if known is None:
            asked, terms = self._default, self._quiet
            if over:
                terms = terms._replace(
                    tightened=OVER_SHARE_MAY_FILL, note="; the client is over its share"
                )
            if bare:
                asked = replace(asked, quality=Quality(floor=self.brownout.floor))
                terms = terms._replace(cheapest=True, note=f"{terms.note}; brownout level {level}")
            known = self._by_level[level, bare, over] = asked, terms
        return known

    def candidates(
        self, tokens: int, *, texts: int = 1, left_ms: float | None = None, now_s: float
    ) -> list[Candidate]:
        """All variants as a request of `tokens` tokens in `texts` texts sees them now.

        Without a budget, of which `left_ms` are left, it waits behind all who have one.
        """
        bounded = left_ms is not None
        self._begin(tokens, texts, left_ms or 0.0, now_s, bounded=bounded)
        return [row.candidate()._replace(soon_ms=row.soonest_ms()) for row in self._rows]

    def _begin(
        self, tokens: int, texts: int, left_ms: float, now_s: float, *, bounded: bool
    ) -> None:
        """What all variants share in what follows."""
        moment = self._moment
        moment.number += 1
        moment.tokens, moment.texts, moment.size_bin = tokens, texts, size_bin(tokens)
        moment.left_ms = left_ms if bounded else inf
        moment.place = place_of(moment.left_ms)
        moment.now_s, moment.lag_ms = now_s, LEGS * self.lag_ms
        for pool, _ in self._pools:
            pool.look(now_s)

    @contextmanager
    def hold(
        self, chosen: Candidate, *, tokens: int, texts: int = 1, now_s: float
    ) -> Iterator[None]:
        """Count an admitted request's tokens as in flight."""
        variant = self._variants[chosen.variant]
        place_ms = chosen.forecast.place_ms
        variant.load.arrived(tokens, texts=texts, place_ms=place_ms, now_s=now_s)
        with variant.load.hold(tokens):
            yield

    def wish(
        self, hint: Hint, decision: Decision, *, tokens: int, texts: int = 1, now_s: float
    ) -> None:
        """Remember which variant a request would have had if all were up and idle.

        Off the hot path: call it once the request is on its way.
        """
        asked = hint.or_default(self._default)
        idle = [self._idle(row, tokens, texts) for row in self._rows]
        first = decide(asked, idle, elapsed_ms=0.0, terms=self._quiet).chosen
        if first is not None:
            work_ms = self._work_ms(first.variant, tokens, texts)
            self.demand.wanted(first.variant, work_ms, now_s=now_s)
        if (chosen := decision.chosen) is not None:
            work_ms = self._work_ms(chosen.variant, tokens, texts)
            self.demand.sent(chosen.variant, work_ms, now_s=now_s)

    def _work_ms(self, variant: str, tokens: int, texts: int) -> float:
        return batches_ms(self._variants[variant].load.profile, tokens, texts=texts)

    def _idle(self, row: Outlook, tokens: int, texts: int) -> Candidate:
        profile = row.load.profile
        service_ms = batches_ms(profile, tokens, texts=texts) + row.pool.contention.at(1)[1]
        found = Forecast(0.0, service_ms, service_ms * profile.spread)
        return Candidate(row.variant, row.fidelity, profile.cost_ms, found)

    def busy_with(self, variant: str, *, now_s: float) -> int:
        """Batches that run, once one more call of this variant has left: to note when it does."""
        load = self._variants[variant].load
        load.count(now_s)
        return load.pool.busy + (load.calls < load.places)

    def may_leave(self, variant: str, *, now_s: float) -> bool:
        """Whether one more call may go to this variant's replicas."""
        load = self._variants[variant].load
        replicas, pool = load.count(now_s), load.pool
        cores = pool.cores if pool.is_shared else inf
        return may_leave(
            load.calls, replicas=replicas, streams=load.streams, busy=pool.busy, cores=cores
        )

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
        load = self._variants[variant].load
        load.saw(state, now_s=now_s)
        load.pool.contention.learn(busy, pace=state.pace, hop_ms=hop_ms)

    def finished(
        self, decision: Decision, *, actual_ms: float, within_budget: bool, now_s: float
    ) -> None:
        """The vectors are there, `actual_ms` after the decision."""
        chosen = decision.chosen
        assert chosen is not None  # noqa: S101  # only admitted requests finish
        variant, found = self._variants[chosen.variant], chosen.forecast
        variant.load.learn(predicted_ms=found.p50_ms, actual_ms=actual_ms)
        log_ratio = _log_ratio(actual_ms, found)
        variant.correction.learn(found.bin, log_ratio=log_ratio, now_s=now_s)
        variant.median.learn(found.bin, log_ratio=log_ratio, now_s=now_s)
        self.brownout.tell(missed=not within_budget, now_s=now_s)
        if within_budget:
            self._returns.answered(now_s=now_s)

    def late(
        self, decision: Decision, *, elapsed_ms: float, now_s: float, hung_up: bool = False
    ) -> None:
        """The request timed out, or its client hung up, `elapsed_ms` after the decision.

        Either tells the forecast that it took longer than that. A client that leaves before its time
        is up was not failed, though: only what timed out counts towards the brownout.
        """
        chosen = decision.chosen
        assert chosen is not None  # noqa: S101
        variant, found = self._variants[chosen.variant], chosen.forecast
        log_ratio = _log_ratio(elapsed_ms, found)
        for quantile in (variant.correction, variant.median):
            quantile.learn(found.bin, log_ratio=log_ratio, now_s=now_s, is_over=False)
        if not hung_up:
            self.brownout.tell(missed=True, now_s=now_s)


def _log_ratio(took_ms: float, found: Forecast) -> float:
    return log(max(took_ms, 0.001) / max(found.told_ms, 0.001))
