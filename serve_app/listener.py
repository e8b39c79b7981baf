"""A replica's door for routers: it listens, lets in who knows its token, and answers calls.

A router that hangs up takes its calls with it: nobody waits for them.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple, cast

from serve_app.calls import Call, Reply
from serve_app.wire import (
    LARGEST_FRAME_BYTES,
    Frame,
    FrameReader,
    Kind,
    NotOurProtocol,
    Welcome,
    frame,
    notice_lost_hosts,
    read_call,
    reply_frame,
    welcome_frame,
)

log = logging.getLogger(__name__)

STRANGERS_BYTES = 256  # as much as anybody may send before the token
STRANGERS_S = 5.0  # and as long as they may take for it

Embed = Callable[[Call], Awaitable[Reply]]


class Address(NamedTuple):
    """Where a replica listens, and what it wants to hear first."""

    host: str
    port: int
    token: str


class Listener:
    """Use from one event loop."""

    def __init__(self, embed: Embed, welcome: Welcome) -> None:
        """Made, not listening yet.

        Args:
            embed: answers a call.
            welcome: what the replica says of itself.
        """
        self.embed = embed
        self.welcome = welcome_frame(welcome)
        self.token = secrets.token_hex(16)
        self.visitors: set[Visitor] = set()
        self._server: asyncio.Server | None = None
        self._address: Address | None = None

    async def address(self, host: str) -> Address:
        """Where it listens, which it does from the first time that somebody asks.

        Args:
            host: the address to bind to, on any free port.
        """
        if self._address is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: Visitor(self), host, 0)
            port = self._server.sockets[0].getsockname()[1]
            self._address = Address(host, port, self.token)
        return self._address

    async def leave(self) -> None:
        """Take no more calls, finish those that are here, and hang up."""
        if self._server is not None:
            self._server.close()
        for visitor in self.visitors:
            visitor.send(frame(Kind.LEAVING))
        while running := [task for visitor in self.visitors for task in visitor.calls.values()]:
            await asyncio.wait(running)
        for visitor in list(self.visitors):
            visitor.hang_up()


class Visitor(asyncio.Protocol):
    """One router's connection, as the replica sees it."""

    def __init__(self, listener: Listener) -> None:
        self.calls: dict[int, asyncio.Task[None]] = {}
        self._listener = listener
        self._known = False
        self._reader = FrameReader(largest_bytes=STRANGERS_BYTES)
        self._transport: asyncio.Transport | None = None

    def send(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        notice_lost_hosts(transport)
        self._listener.visitors.add(self)
        asyncio.get_running_loop().call_later(STRANGERS_S, self._send_away_strangers)

    def _send_away_strangers(self) -> None:
        if not self._known:
            self.hang_up()

    def data_received(self, data: bytes) -> None:
        try:
            for found in self._reader.feed(data):
                self._take(found)
        except NotOurProtocol as error:
            log.warning("a connection sent what is no frame, hanging up: %s", error)
            self.hang_up()

    def _take(self, found: Frame) -> None:
        if not self._known:
            self._let_in(found)
        elif found.kind == Kind.CALL:
            task = asyncio.create_task(self._answer(found.call, read_call(found.body)))
            self.calls[found.call] = task
            task.add_done_callback(partial(self._ended, found.call))
        elif found.kind == Kind.CANCEL and (running := self.calls.get(found.call)):
            running.cancel()

    def _let_in(self, found: Frame) -> None:
        token = self._listener.token.encode()
        if found.kind != Kind.HELLO or not hmac.compare_digest(found.body, token):
            raise NotOurProtocol("it does not know the token")
        self._known = True
        self._reader.largest_bytes = LARGEST_FRAME_BYTES
        self.send(self._listener.welcome)

    async def _answer(self, number: int, call: Call) -> None:
        try:
            reply = await self._listener.embed(call)
        except Exception:  # whatever the runtime raises: the router shall not wait
            log.exception("the engine failed a call")
            self.send(frame(Kind.FAILED, number))
        else:
            self.send(reply_frame(number, reply))

    def _ended(self, number: int, task: asyncio.Task[None]) -> None:
        del task
        self.calls.pop(number, None)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._listener.visitors.discard(self)
        for task in self.calls.values():
            task.cancel()
