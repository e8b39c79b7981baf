"""The deployed variants as the router sees them: which are up, how loaded, which one to take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from serve_app.dispatch import Lane, Transport
from serve_app.engines.base import TokenIds
from serve_app.errors import HintConflict, NotReady, UnknownVariant, shown
from serve_app.policy.forecast import forecast
from serve_app.policy.hint import Hint
from serve_app.policy.load import VariantLoad
from serve_app.policy.routing import Candidate, Decision, decide, fidelity_floor
from serve_app.registry import Ladder, Rung

WARM_UP_CALLS = 10


class Fleet:
    """A lane to each variant of the ladder."""

    def __init__(self, ladder: Ladder, transports: Mapping[str, Transport]) -> None:
        self.off = ladder.off
        self.rungs: dict[str, Rung] = {r.manifest.variant: r for r in ladder.rungs}
        self.lanes = {
            name: Lane(rung.manifest, transports[name], load=VariantLoad())
            for name, rung in self.rungs.items()
        }
        self.ready: set[str] = set()
        self._fidelities = {name: r.manifest.fidelity.p1 for name, r in self.rungs.items()}

    async def warm_up(self, texts: list[TokenIds]) -> None:
        """Wait for every variant's first replica, and measure what a call to it costs on top."""
        await asyncio.gather(*(self._warm_up(name, texts) for name in self.lanes))

    async def _warm_up(self, name: str, texts: list[TokenIds]) -> None:
        lane = self.lanes[name]
        await lane.embed(texts, deadline_s=None)  # opens connections: tells nothing of later calls
        lane.load.hop_ms = None
        for _ in range(WARM_UP_CALLS):
            await lane.embed(texts, deadline_s=None)
        self.ready.add(name)

    @property
    def starting(self) -> list[str]:
        """Variants without a replica yet."""
        return [name for name in self.rungs if name not in self.ready]

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
        fidelity, floor = self._fidelities[pinned], self._floor(hint)
        if fidelity < floor:
            raise HintConflict(
                f"variant {shown(pinned)} has fidelity {fidelity:.6f}, "
                f"and quality asks for {floor:.6f} at least",
                param=param,
            )

    def decide(self, hint: Hint, *, tokens: int, elapsed_ms: float, max_wait_ms: float) -> Decision:
        """Choose a variant for a request; see `serve_app.policy.routing.decide`.

        Raises:
            NotReady: all that the hint allows still start.
        """
        self._require_ready(hint)
        return decide(hint, self.candidates(tokens), elapsed_ms=elapsed_ms, max_wait_ms=max_wait_ms)

    def candidates(self, tokens: int) -> list[Candidate]:
        """The variants that are up, as a request of `tokens` tokens sees them now."""
        now_s = time.monotonic()
        return [
            self._candidate(name, tokens, now_s=now_s) for name in self.rungs if name in self.ready
        ]

    def _candidate(self, name: str, tokens: int, *, now_s: float) -> Candidate:
        lane = self.lanes[name]
        profile = lane.profile(now_s=now_s)
        return Candidate(
            variant=name,
            fidelity=self._fidelities[name],
            cost=profile.cost_ms,
            forecast=forecast(profile, lane.load.at(now_s=now_s), tokens=tokens),
        )

    def _require_ready(self, hint: Hint) -> None:
        floor = self._floor(hint)
        able = [
            name
            for name, fidelity in self._fidelities.items()
            if fidelity >= floor and hint.variant in (None, name)
        ] or list(self.rungs)
        if self.ready.isdisjoint(able):
            raise NotReady(f"no replica is up yet for {', '.join(able)}; ask /ready")

    def _floor(self, hint: Hint) -> float:
        return fidelity_floor(hint, list(self._fidelities.values()))
