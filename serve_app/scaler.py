"""Routers agree on the size of each replica group over a board that they and Serve's controller see.

    demand/<router>     each router writes what its requests ask of each variant
    target/<variant>    one router, the first by name, adds these up and writes the sizes
    standing/<variant>  the controller obeys, and writes what it aims at and what runs

A variant without replicas has nobody to report for it, so its demand must come from the routers; and
Serve's policies see one deployment each, so the CPUs can only be shared out where all demand is known.
Ray is not known here: `app.py` brings the board.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from serve_app.policy.scaling import Bounds, Group, Rules, scale

log = logging.getLogger(__name__)

TICK_S = 1.0
GONE_AFTER_S = 10.0  # a router that reported nothing new for so long counts no more

TARGET, STANDING, DEMAND = "target/", "standing/", "demand/"


class Board(Protocol):
    """Small texts by key, the same for every process of the application."""

    def read(self, key: str) -> str | None: ...

    def write(self, key: str, text: str) -> None: ...

    def delete(self, key: str) -> None: ...

    def keys(self, prefix: str) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class Standing:
    """A replica group as the controller has it."""

    target: int
    running: int

    @classmethod
    def parse(cls, text: str) -> Standing:
        """From what `text` wrote."""
        target, running = map(int, text.split("/"))
        return cls(target, running)

    @property
    def text(self) -> str:
        return f"{self.target}/{self.running}"


class Scaler:
    """One router's part in it."""

    def __init__(
        self, board: Board, *, router: str, bounds: Sequence[Bounds], rules: Rules
    ) -> None:
        self._board = board
        self._router = router
        self._bounds = bounds
        self._rules = rules
        self._groups: dict[str, Group] = {}
        self._ticks = 0
        self._heard: dict[str, tuple[str, float]] = {}  # router -> last report, when it was new

    def tick(self, demand: Mapping[str, float], *, now_s: float) -> dict[str, Standing]:
        """Report, decide if that is this router's to do, and say how the groups stand.

        Args:
            demand: busy engines by variant, of this router's requests.
            now_s: on this router's clock; clocks of different nodes are never compared.
        """
        self._ticks += 1  # two reports of one router always differ, also when demand does not
        report = json.dumps({"tick": self._ticks, "busy": dict(demand)})
        self._board.write(DEMAND + self._router, report)
        self._listen(now_s)
        standings = self._standings()
        if min(self._heard) == self._router:
            self._decide(standings, now_s)
        else:
            self._groups.clear()  # the clock of a decision taken over later starts then
        return standings

    def _listen(self, now_s: float) -> None:
        """Hear all routers; forget those that are gone."""
        found = {key.removeprefix(DEMAND): key for key in self._board.keys(DEMAND)}
        for router, key in found.items():
            text = self._board.read(key)
            if text is not None and self._heard.get(router, ("", 0.0))[0] != text:
                self._heard[router] = (text, now_s)
        for router, (_, new_s) in list(self._heard.items()):
            if now_s - new_s > GONE_AFTER_S:
                del self._heard[router]
                self._board.delete(DEMAND + router)

    def _standings(self) -> dict[str, Standing]:
        found = {}
        for bound in self._bounds:
            text = self._board.read(STANDING + bound.variant)
            if text is not None:
                found[bound.variant] = Standing.parse(text)
        return found

    def _decide(self, standings: Mapping[str, Standing], now_s: float) -> None:
        """Whoever decides anew starts from the sizes that the controller aims at."""
        started = {v: Group(s.target, now_s) for v, s in standings.items()}
        self._groups = scale(
            self._demand(),
            started | self._groups,
            bounds=self._bounds,
            rules=self._rules,
            now_s=now_s,
        )
        for variant, group in self._groups.items():
            if variant not in standings or standings[variant].target != group.replicas:
                self._board.write(TARGET + variant, str(group.replicas))

    def _demand(self) -> dict[str, float]:
        """Of all routers together."""
        total = {bound.variant: 0.0 for bound in self._bounds}
        for text, _ in self._heard.values():
            for variant, busy in json.loads(text)["busy"].items():
                if variant in total:
                    total[variant] += busy
        return total


class Variants(Protocol):
    """The router's variants, as far as scaling needs them."""

    def demand(self) -> Mapping[str, float]:
        """Busy engines by variant, of this router's requests."""
        ...

    async def warm_up_variant(self, variant: str) -> None:
        """Wait for a replica, and let requests go there."""
        ...

    def cool_down(self, variant: str) -> None:
        """Let no request go there any more."""
        ...


class Attendant:
    """Keeps the router's variants in step with their replica groups.

    A group that is to have replicas is waited for and warmed up; one that is to have none gets no
    more requests. One whose replicas died is neither: calls are sent again when the next one is up.
    """

    def __init__(self, variants: Variants, bounds: Sequence[Bounds]) -> None:
        self._variants = variants
        self._warm: dict[str, asyncio.Task[None]] = {}
        for bound in bounds:
            if bound.minimum == 0:
                variants.cool_down(bound.variant)
        self.look({b.variant: Standing(b.minimum, b.minimum) for b in bounds})

    async def follow(self, scaler: Scaler) -> None:
        """Tick after tick, for ever."""
        while True:
            demand, now_s = self._variants.demand(), time.monotonic()
            try:
                self.look(await asyncio.to_thread(scaler.tick, demand, now_s=now_s))
            except Exception:  # the board is elsewhere, and may be away for a while
                log.exception("replica groups keep their sizes: the board cannot be read")
            await asyncio.sleep(TICK_S)

    def look(self, standings: Mapping[str, Standing]) -> None:
        """Warm up what came up, and leave alone what goes down."""
        for variant, standing in standings.items():
            warm = self._warm.get(variant)
            if standing.target == 0 and warm is not None:
                del self._warm[variant]
                warm.cancel()
                self._variants.cool_down(variant)
            elif standing.target and standing.running and (warm is None or _failed(warm)):
                task = asyncio.create_task(self._variants.warm_up_variant(variant))
                self._warm[variant] = task


def _failed(task: asyncio.Task[None]) -> bool:
    if not task.done():
        return False
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("a variant could not be warmed up", exc_info=error)
    return task.cancelled() or error is not None
