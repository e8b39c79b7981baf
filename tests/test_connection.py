"""A router's connection and a replica's door: calls cross, and whoever hangs up is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from serve_app.calls import Call, Reply
from serve_app.connection import Connection
from serve_app.errors import InternalError, ReplicaDied
from serve_app.listener import Listener, Visitor
from serve_app.policy.replica_state import ReplicaState
from serve_app.wire import Kind, Welcome, frame
from tests.pipes import Pipe, join, settle

CALL = Call.of([np.array([1, 2, 3], dtype=np.int32)])


class Held:
    """Stands for a replica's engine: each call waits until the test answers it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Call, asyncio.Future[Reply]]] = []

    async def __call__(self, call: Call) -> Reply:
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.calls.append((call, answer))
        return await answer

    def answer(self, index: int, *, value: float = 1.0) -> None:
        vectors = np.full((self.calls[index][0].count, 2), value, dtype=np.float32)
        state = ReplicaState(replica="r1", queued_tokens=0)
        self.calls[index][1].set_result(Reply(vectors.tobytes(), 0.0, 1.0, state))


class Wired:
    """A router joined to a replica, both in this loop."""

    def __init__(self, *, knows_token: bool = True) -> None:
        self.engine = Held()
        self.listener = Listener(self.engine, Welcome("r1", None))
        self.lost: list[Connection] = []
        known = self.listener.token if knows_token else self.listener.token[:-1]
        self.connection = Connection(known, lost=self.lost.append)
        self.visitor = Visitor(self.listener)
        self.ends: tuple[Pipe, Pipe] = join(self.connection, self.visitor)

    async def start(self) -> asyncio.Task[Reply]:
        """A call that has reached the engine."""
        known = len(self.engine.calls)
        task = asyncio.create_task(self.connection.call(CALL))
        await settle(lambda: len(self.engine.calls) > known)
        return task


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_each_call_gets_its_own_reply_whatever_their_order() -> None:
    """Two calls are on their way at once, and the second comes back first."""

    async def scenario() -> None:
        wired = Wired()
        assert (await wired.connection.welcomed).replica == "r1"
        first, second = await wired.start(), await wired.start()
        assert wired.connection.tokens == 2 * CALL.tokens
        wired.engine.answer(1, value=2.0)
        wired.engine.answer(0, value=1.0)
        assert np.frombuffer((await second).vectors, np.float32).tolist() == [2.0, 2.0]
        assert np.frombuffer((await first).vectors, np.float32).tolist() == [1.0, 1.0]
        assert (await first).state.replica == "r1"
        assert wired.connection.tokens == 0

    run(scenario())


def test_a_cancelled_call_is_cancelled_at_the_replica() -> None:
    """Nobody waits for it any more, so the engine is spared; other calls go on."""

    async def scenario() -> None:
        wired = Wired()
        first, second = await wired.start(), await wired.start()
        first.cancel()
        await settle(wired.engine.calls[0][1].cancelled)
        assert wired.engine.calls[0][1].cancelled()
        assert wired.connection.tokens == CALL.tokens
        wired.engine.answer(1)
        assert (await second).inference_ms == 1.0

    run(scenario())


def test_calls_fail_at_once_when_the_replica_dies() -> None:
    """A broken connection is `ReplicaDied` for all that waits and comes, and its opener hears of it."""

    async def scenario() -> None:
        wired = Wired()
        task = await wired.start()
        wired.ends[1].close()
        with pytest.raises(ReplicaDied):
            await task
        assert wired.lost == [wired.connection]
        assert wired.connection.closed
        assert not wired.connection.usable
        with pytest.raises(ReplicaDied):
            await wired.connection.call(CALL)

    run(scenario())


def test_a_router_that_dies_takes_its_calls_with_it() -> None:
    """The replica stops working for those who have gone."""

    async def scenario() -> None:
        wired = Wired()
        task = await wired.start()
        wired.connection.close()
        await settle(wired.engine.calls[0][1].cancelled)
        assert wired.engine.calls[0][1].cancelled()
        assert not wired.listener.visitors
        with pytest.raises(ReplicaDied):
            await task

    run(scenario())


def test_an_engine_that_fails_costs_its_call_only() -> None:
    """The caller hears of a failure without its details, and the connection lives on."""

    async def scenario() -> None:
        wired = Wired()
        first, second = await wired.start(), await wired.start()
        wired.engine.calls[0][1].set_exception(RuntimeError("secret"))
        with pytest.raises(InternalError) as failed:
            await first
        assert "secret" not in failed.value.message
        wired.engine.answer(1)
        await second

    run(scenario())


def test_a_stranger_is_not_let_in() -> None:
    """Without the token there is no welcome and no call, only a hang-up."""

    async def scenario() -> None:
        wired = Wired(knows_token=False)
        with pytest.raises(ReplicaDied):
            await wired.connection.welcomed
        assert wired.ends[1].is_closing()
        assert wired.ends[1].written == b""

    run(scenario())


def test_a_call_before_the_token_is_not_run() -> None:
    """The first frame must be the token, whatever follows it."""

    async def scenario() -> None:
        engine = Held()
        visitor = Visitor(Listener(engine, Welcome("r1", None)))
        end = Pipe(piece_bytes=1)
        end.protocol = visitor
        visitor.connection_made(end)
        visitor.data_received(frame(Kind.CALL, 1, b"\x01\x00\x00\x00"))
        await settle()
        assert end.is_closing()
        assert engine.calls == []

    run(scenario())


def test_what_is_no_frame_ends_the_connection_and_not_the_replica() -> None:
    """After the token, nonsense closes the connection that sent it."""

    async def scenario() -> None:
        wired = Wired()
        await wired.connection.welcomed
        wired.ends[0].write(frame(Kind.CALL, 3, b"nonsense"))
        await settle(lambda: not wired.listener.visitors)
        assert wired.ends[1].is_closing()
        assert not wired.listener.visitors

    run(scenario())


def test_a_leaving_replica_finishes_what_it_has_and_takes_no_more() -> None:
    """The router is told first, the calls end, then the connection does."""

    async def scenario() -> None:
        wired = Wired()
        task = await wired.start()
        leaving = asyncio.create_task(wired.listener.leave())
        await settle(lambda: not wired.connection.usable)
        assert not wired.connection.usable
        assert not wired.connection.closed
        assert not leaving.done()
        wired.engine.answer(0)
        assert (await task).inference_ms == 1.0
        await leaving
        await settle(lambda: wired.connection.closed)
        assert wired.connection.closed

    run(scenario())
