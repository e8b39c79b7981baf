"""Calls over connections of our own to each replica of a variant; Serve's handle where there is none.

Serve says which replicas there are, when asked over its handle (`Find`); a look around now and then, and
at once when a connection breaks, finds those that came. A call goes to the replica that has the fewest of
this router's tokens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from serve_app.calls import Call, Reply
from serve_app.connection import Connection, connect
from serve_app.dispatch import Transport
from serve_app.errors import ReplicaDied
from serve_app.listener import Address

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0  # asking all replicas costs each side a handle call
LOOK_AGAIN_S = 0.25  # after a connection broke, or while there is none

Find = Callable[[], Awaitable[Sequence[Address]]]


class Connect(Protocol):
    """As `serve_app.connection.connect`."""

    async def __call__(
        self, address: Address, *, lost: Callable[[Connection], None]
    ) -> Connection: ...


class DirectTransport:
    """Carries calls to the replicas of one variant. Use from one event loop."""

    def __init__(self, handle: Transport, find: Find, *, connect: Connect = connect) -> None:
        """Made, without connections yet: `follow` makes them.

        Args:
            handle: takes the calls while there are none.
            find: where the variant's replicas listen.
            connect: reaches one of them.
        """
        self._handle = handle
        self._find = find
        self._connect = connect
        self._open: dict[Address, Connection] = {}
        self._turn = 0
        self._change = asyncio.Event()
        self._failed: set[Address] = set()

    async def __call__(self, call: Call) -> Reply:
        """As `serve_app.dispatch.Transport`."""
        connection = self._least_loaded()
        if connection is None:
            self._change.set()
            return await self._handle(call)
        return await connection.call(call)

    def _least_loaded(self) -> Connection | None:
        """Of several that are, each in its turn."""
        able = [c for c in self._open.values() if c.usable]
        if len(able) < 2:  # noqa: PLR2004  # no choice
            return able[0] if able else None
        self._turn += 1
        start = self._turn % len(able)
        return min([*able[start:], *able[:start]], key=lambda c: c.tokens)

    async def follow(self) -> None:
        """Keep a connection to each replica, for ever."""
        while True:
            self._change.clear()
            try:
                await self.look_around()
            except Exception:
                log.exception("replicas could not be looked up; calls go over Serve's handle")
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._change.wait()
                await asyncio.sleep(LOOK_AGAIN_S)
            except TimeoutError:
                pass

    async def look_around(self) -> None:
        """Connect to replicas that came; those that went hang up themselves."""
        found = await self._find()
        self._open = {a: c for a, c in self._open.items() if not c.closed}
        new = [address for address in found if address not in self._open]
        await asyncio.gather(*map(self._reach, new))
        self._failed.intersection_update(found)

    async def _reach(self, address: Address) -> None:
        try:
            self._open[address] = await self._connect(address, lost=self._lost)
        except (OSError, TimeoutError, ReplicaDied) as error:
            if address not in self._failed:
                self._failed.add(address)
                log.warning(
                    "no connection to the replica on %s:%d (%s): open the nodes' ports to each "
                    "other; a variant's calls go over Serve's handle while none is reached",
                    address.host,
                    address.port,
                    error or type(error).__name__,
                )

    def _lost(self, connection: Connection) -> None:
        for address, known in list(self._open.items()):
            if known is connection:
                del self._open[address]
                self._change.set()

    def close(self) -> None:
        """Hang up everywhere."""
        for connection in list(self._open.values()):
            connection.close()
