"""A router's end of a connection to one replica: many calls at once, each under its number.

A connection that breaks fails its calls at once, as `ReplicaDied`, and whoever opened it hears of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from serve_app.calls import Call, Reply
from serve_app.errors import InternalError, ReplicaDied
from serve_app.listener import Address
from serve_app.wire import (
    Frame,
    FrameReader,
    Kind,
    NotOurProtocol,
    Welcome,
    call_frame,
    frame,
    notice_lost_hosts,
    read_reply,
    read_welcome,
)

log = logging.getLogger(__name__)

CONNECT_WITHIN_S = 2.0


class Connection(asyncio.Protocol):
    """Use from one event loop; made by `connect`."""

    def __init__(self, token: str, *, lost: Callable[[Connection], None]) -> None:
        self.tokens = 0  # of calls that are not back
        self.welcomed: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self._hello = frame(Kind.HELLO, 0, token.encode())
        self._lost = lost
        self._leaving = False
        self._reader = FrameReader()
        self._calls: dict[int, asyncio.Future[Reply]] = {}
        self._number = 0
        self._transport: asyncio.Transport | None = None

    @property
    def closed(self) -> bool:
        """Whether it broke, or was hung up."""
        return self._transport is None or self._transport.is_closing()

    @property
    def usable(self) -> bool:
        """Whether the replica takes calls."""
        return not self._leaving and not self.closed

    async def call(self, call: Call) -> Reply:
        """Have a call's texts embedded; cancelling it tells the replica.

        Raises:
            ReplicaDied: the connection broke, or the replica leaves.
            InternalError: the engine failed; the replica's log says how.
        """
        if (
            self._transport is None or self._transport.is_closing()
        ):  # `closed`, for the type checker
            raise ReplicaDied("the connection to the replica is closed")
        self._number = number = (self._number + 1) % 2**32
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        tokens = call.tokens
        self.tokens += tokens
        self._transport.write(call_frame(number, call))
        try:
            return await answer
        except asyncio.CancelledError:
            self._transport.write(frame(Kind.CANCEL, number))
            raise
        finally:
            self.tokens -= tokens
            self._calls.pop(number, None)

    def close(self) -> None:
        """Hang up; what is on its way fails."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        notice_lost_hosts(transport)
        self._transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        try:
            for found in self._reader.feed(data):
                self._take(found)
        except (NotOurProtocol, ValueError):
            log.exception("a replica sent what is no frame; hanging up")
            self.close()

    def _take(self, found: Frame) -> None:
        if found.kind == Kind.WELCOME:
            self.welcomed.set_result(read_welcome(found.body))
        elif found.kind == Kind.LEAVING:
            self._leaving = True
        elif (answer := self._calls.get(found.call)) is None or answer.done():
            return  # it was cancelled meanwhile
        elif found.kind == Kind.REPLY:
            answer.set_result(read_reply(found.body, self.welcomed.result()))
        elif found.kind == Kind.FAILED:
            answer.set_exception(
                InternalError("the variant's engine failed; the replica's log has the details")
            )

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # why it broke does not matter to those who wait
        died = ReplicaDied("the replica that held the request died")
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(died)
        if not self.welcomed.done():
            self.welcomed.set_exception(died)
        self._lost(self)


async def connect(address: Address, *, lost: Callable[[Connection], None]) -> Connection:
    """Reach a replica and be welcomed.

    Raises:
        OSError, TimeoutError: nobody listens there, or not in time.
        ReplicaDied: it hung up, as on a wrong token.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_WITHIN_S):
        _, connection = await loop.create_connection(
            lambda: Connection(address.token, lost=lost), address.host, address.port
        )
        try:
            await connection.welcomed
        except BaseException:
            connection.close()
            raise
    return connection
