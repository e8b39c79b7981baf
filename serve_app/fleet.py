"""The deployed variants as the router sees them: which are up, how loaded, which one to take.

The fleet joins the brain, which decides, to the lanes, which carry.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import replace

from serve_app.dispatch import Lane, Pump, Transport
from serve_app.engines.base import TokenIds
from serve_app.engines.tokenization import Tokenized
from serve_app.errors import (
    HintConflict,
    NotAdmitted,
    NotReady,
    UnknownVariant,
    shown,
)
from serve_app.lag import Lag
from serve_app.metrics import Outcome, Tally
from serve_app.parts import Embedded
from serve_app.placement import cores_of, streams_of
from serve_app.policy.batching import short_batches
from serve_app.policy.brain import Brain, Options, VariantFacts
from serve_app.policy.hint import Hint, Quality
from serve_app.policy.routing import Decision
from serve_app.registry import Ladder, Rung
from serve_app.settings import Settings

log = logging.getLogger(__name__)

WARM_UP_CALLS = 10


class Fleet:
    """A lane to each variant of the ladder, and the brain that knows them all."""

    def __init__(
        self, ladder: Ladder, transports: Mapping[str, Transport], *, settings: Settings
    ) -> None:
        self.off = ladder.off
        self.rungs: dict[str, Rung] = {r.manifest.variant: r for r in ladder.rungs}
        self._fidelities = {name: r.manifest.fidelity.p1 for name, r in self.rungs.items()}
        cores = cores_of(settings)
        self.brain = Brain(
            [
                VariantFacts(
                    variant=name,
                    fidelity=fidelity,
                    profile=short_batches(rung.manifest.profile),
                    streams=streams_of(rung, settings, cores=cores),
                    on_cores=rung.device != "cuda",
                )
                for (name, rung), fidelity in zip(
                    self.rungs.items(), self._fidelities.values(), strict=True
                )
            ],
            options=Options(
                default=_reachable(settings.default_hint(), max(self._fidelities.values())),
                # Each batch takes so many threads, and routers keep to equal parts.
                cores=cores / settings.threads / settings.routers,
                max_wait_ms=settings.max_wait_ms,
                reserve_ms=settings.reserve_ms,
            ),
            draw=random.random,
        )
        pump = Pump()
        self.lanes = {
            name: Lane(rung.manifest, transports[name], brain=self.brain, pump=pump)
            for name, rung in self.rungs.items()
        }
        self.tally = Tally(self.rungs)
        self._lag = Lag()
        self._resting: set[str] = set()

    async def warm_up(self, texts: list[TokenIds]) -> None:
        """Wait for every variant's first replica, and measure what a call to it costs on top."""
        self._lag.start()
        await asyncio.gather(*(self.warm_up_variant(name, texts) for name in self.lanes))

    async def warm_up_variant(self, name: str, texts: list[TokenIds]) -> None:
        """As `warm_up`, of one variant; then requests may go there."""
        lane = self.lanes[name]
        await lane.reach(texts)
        for _ in range(WARM_UP_CALLS):
            await lane.embed(texts, deadline_s=None)
        self.brain.set_ready(name)
        self._resting.discard(name)

    def cool_down(self, name: str) -> None:
        """Let no request go to a variant that is to have no replica: nobody need wait for one."""
        self.brain.set_ready(name, ready=False)
        self._resting.add(name)

    def demand(self) -> dict[str, float]:
        """Engines that each variant would keep busy if each request had its first choice."""
        now_s = time.monotonic()
        return {name: self.brain.demand.busy(name, now_s=now_s) for name in self.rungs}

    @property
    def ready(self) -> list[str]:
        """Variants with a replica."""
        return [name for name in self.rungs if self.brain.is_ready(name)]

    @property
    def starting(self) -> list[str]:
        """Variants without a replica yet, though they are to have one."""
        return [n for n in self.rungs if not self.brain.is_ready(n) and n not in self._resting]

    def check_pin(self, hint: Hint, *, param: str) -> None:
        """A pinned variant must be deployed, and not below the floor: that is a promise.

        Raises:
            UnknownVariant, HintConflict: name what the client sent, as `param`.
        """
        pinned = hint.variant
        if pinned is None:
            return
        if pinned not in self.rungs:
            raise UnknownVariant(
                f"no variant {shown(pinned)}; deployed are {', '.join(self.rungs)}", param=param
            )
        if hint.quality is None:
            return
        fidelity = self._fidelities[pinned]
        floor = max(self._fidelities.values()) if hint.quality.best else hint.quality.floor
        if fidelity < floor:
            raise HintConflict(
                f"variant {shown(pinned)} has fidelity {fidelity:.6f}, "
                f"and quality asks for {floor:.6f} at least",
                param=param,
            )

    def look(self) -> float:
        """The time, once the brain has noticed how much of it has passed."""
        now_s = time.monotonic()
        self.brain.lag_ms = self._lag.now_ms()
        self.brain.brownout.look(now_s=now_s)
        return now_s

    def come_in(self) -> None:
        """Let a request in to be read, unless the router cannot keep up with reading.

        Raises:
            NotAdmitted: come again later; nothing is known of the request.
        """
        retry_after_s = self.brain.turns_away(now_s=self.look())
        if retry_after_s is not None:
            self.tally.unread += 1
            raise NotAdmitted(
                "not admitted: more requests arrive than this router can read; it took no look at this one",
                param=None,
                retry_after_s=retry_after_s,
            )

    def judge(
        self, hint: Hint, *, tokens: int, texts: int = 1, elapsed_ms: float, client: str
    ) -> Decision:
        """What `decide` would say now; nothing is remembered.

        Raises:
            NotReady: all that the hint allows still start.
        """
        now_s = self.look()
        decision = self.brain.judge(
            hint, tokens=tokens, texts=texts, elapsed_ms=elapsed_ms, client=client, now_s=now_s
        )
        _require_ready(decision)
        return decision

    def decide(
        self, hint: Hint, *, tokens: int, texts: int = 1, elapsed_ms: float, client: str
    ) -> Decision:
        """Choose a variant for a request; see `serve_app.policy.brain.Brain.decide`.

        What is refused is wished for all the same: more replicas may come of it.

        Raises:
            NotReady: all that the hint allows still start.
        """
        now_s = self.look()
        decision = self.brain.decide(
            hint, tokens=tokens, texts=texts, elapsed_ms=elapsed_ms, client=client, now_s=now_s
        )
        if decision.chosen is None:
            self.brain.wish(hint, decision, tokens=tokens, texts=texts, now_s=now_s)
            _require_ready(decision)
            self.tally.refused += 1
        return decision

    async def embed(
        self,
        hint: Hint,
        decision: Decision,
        tokenized: Tokenized,
        *,
        deadline_s: float | None,
    ) -> Embedded:
        """Run an admitted request on its variant, and learn from what becomes of it.

        Args:
            hint: as the client sent it.
            decision: one that chose.
            tokenized: its texts, one at least.
            deadline_s: `time.monotonic()` when the answer loses its worth, or None.

        Raises:
            DeadlineExceeded, NotAdmitted, ReplicaDied: as `serve_app.dispatch.Lane.embed`.
        """
        chosen = decision.chosen
        assert chosen is not None  # noqa: S101  # the refused go no further
        brain, name, started_s = self.brain, chosen.variant, time.monotonic()
        tokens = tokenized.tokens
        texts = len(tokenized.texts)
        with brain.hold(chosen, tokens=tokens, texts=texts, now_s=started_s):
            # After the call has left: what was wished for is in no hurry.
            asyncio.get_running_loop().call_later(0, self._wish, hint, decision, tokenized)
            try:
                done = await self.lanes[name].embed(
                    tokenized.texts, deadline_s=deadline_s, place_ms=chosen.forecast.place_ms
                )
            except BaseException as error:  # cancellation too: it is learned from, and goes on
                outcome = Outcome.of(error)
                self.tally.ended(name, outcome)
                if outcome in (Outcome.LATE, Outcome.DISCONNECTED):
                    now_s = time.monotonic()
                    elapsed_ms = (now_s - started_s) * 1000
                    brain.late(
                        decision,
                        elapsed_ms=elapsed_ms,
                        now_s=now_s,
                        hung_up=outcome is Outcome.DISCONNECTED,
                    )
                raise
        now_s = time.monotonic()
        self.tally.answered(name, now_s - started_s)
        brain.finished(
            decision,
            actual_ms=(now_s - started_s) * 1000,
            within_budget=deadline_s is None or now_s <= deadline_s,
            now_s=now_s,
        )
        return done

    def _wish(self, hint: Hint, decision: Decision, asked: Tokenized) -> None:
        now_s, texts = time.monotonic(), len(asked.texts)
        self.brain.wish(hint, decision, tokens=asked.tokens, texts=texts, now_s=now_s)


def _require_ready(decision: Decision) -> None:
    """What is refused only because nothing allowed is up may come back."""
    if decision.chosen is not None:
        return
    hint, candidates, _, floor = decision.grounds
    allowed = [
        c for c in candidates if c.fidelity >= floor and hint.variant in (None, c.variant)
    ] or candidates
    if all(c.cold for c in allowed):
        names = ", ".join(c.variant for c in allowed)
        raise NotReady(f"no replica is up yet for {names}; ask /ready")


def _reachable(default: Hint, best: float) -> Hint:
    """The default hint with its floor lowered to what is deployed: nobody asked for more."""
    if default.quality is None or default.quality.floor <= best:
        return default
    log.warning(
        "the default floor %s is above every variant; using %s", default.quality.floor, best
    )
    return replace(default, quality=Quality(floor=best))
