"""Calls find a replica: over a connection where there is one, over Serve's handle where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from serve_app.calls import Call, Reply
from serve_app.connection import Connection
from serve_app.direct import DirectTransport
from serve_app.listener import Address, Listener, Visitor
from serve_app.policy.replica_state import ReplicaState
from serve_app.wire import Welcome
from tests.pipes import join, settle

CALL = Call.of([np.array([1, 2], dtype=np.int32)])


def _reply(name: str) -> Reply:
    return Reply(b"", 0.0, 0.0, ReplicaState(replica=name, queued_tokens=0))


class Host:
    """Stands for a replica that listens, and counts what reaches it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0
        self.hold: asyncio.Event | None = None
        self.listener = Listener(self._embed, Welcome(name, None))
        self.address = Address(name, 1, self.listener.token)

    async def _embed(self, call: Call) -> Reply:
        del call
        self.calls += 1
        if self.hold is not None:
            await self.hold.wait()
        return _reply(self.name)

    def die(self) -> None:
        for visitor in list(self.listener.visitors):
            visitor.hang_up()


class Cluster:
    """What Serve knows, and a network that reaches every host but those in `unreachable`."""

    def __init__(self, *names: str) -> None:
        self.hosts = {name: Host(name) for name in names}
        self.unreachable: set[str] = set()
        self.over_handle = 0
        self.transport = DirectTransport(self._handle, self._find, connect=self._connect)

    async def _handle(self, call: Call) -> Reply:
        del call
        self.over_handle += 1
        return _reply("over the handle")

    async def _find(self) -> list[Address]:
        return [host.address for host in self.hosts.values()]

    async def _connect(self, address: Address, *, lost: Callable[[Connection], None]) -> Connection:
        if address.host in self.unreachable:
            raise OSError("no route")
        connection = Connection(address.token, lost=lost)
        join(connection, Visitor(self.hosts[address.host].listener))
        await connection.welcomed
        return connection

    async def call(self) -> str:
        return (await self.transport(CALL)).state.replica


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_calls_go_over_the_handle_until_a_replica_is_found() -> None:
    """Nothing waits for connections: Serve's handle carries the first calls."""

    async def scenario() -> None:
        cluster = Cluster("a")
        assert await cluster.call() == "over the handle"
        await cluster.transport.look_around()
        assert await cluster.call() == "a"
        assert cluster.over_handle == 1

    run(scenario())


def test_a_call_goes_to_the_replica_with_the_fewest_tokens() -> None:
    """A busy replica is left alone while another has less to do, and idle ones take turns."""

    async def scenario() -> None:
        cluster = Cluster("a", "b")
        await cluster.transport.look_around()
        assert {await cluster.call(), await cluster.call()} == {"a", "b"}
        busy = cluster.hosts["a"]
        busy.hold = asyncio.Event()
        held = [asyncio.create_task(cluster.call()) for _ in range(2)]
        await settle(lambda: busy.calls == 2)
        assert [await cluster.call() for _ in range(4)] == ["b"] * 4
        busy.hold.set()
        assert "a" in await asyncio.gather(*held)

    run(scenario())


def test_a_replica_that_died_gets_no_more_calls() -> None:
    """The other one does, and when none is left the handle does."""

    async def scenario() -> None:
        cluster = Cluster("a", "b")
        await cluster.transport.look_around()
        cluster.hosts.pop("a").die()
        await settle()
        assert [await cluster.call() for _ in range(3)] == ["b"] * 3
        cluster.hosts.pop("b").die()
        await settle()
        assert await cluster.call() == "over the handle"

    run(scenario())


def test_a_replica_that_cannot_be_reached_is_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A firewall between nodes costs speed, not answers, and the log says what to open."""

    async def scenario() -> None:
        cluster = Cluster("a")
        cluster.unreachable.add("a")
        for _ in range(3):
            await cluster.transport.look_around()
        assert await cluster.call() == "over the handle"
        cluster.unreachable.clear()
        await cluster.transport.look_around()
        assert await cluster.call() == "a"

    run(scenario())
    assert [r.message for r in caplog.records if "open the nodes' ports" in r.message] == [
        caplog.records[0].message
    ]


def test_a_leaving_replica_gets_no_new_calls() -> None:
    """While it finishes what it has, the others are called."""

    async def scenario() -> None:
        cluster = Cluster("a", "b")
        await cluster.transport.look_around()
        leaving = cluster.hosts["a"]
        leaving.hold = asyncio.Event()
        held = [asyncio.create_task(cluster.call()) for _ in range(2)]
        await settle(lambda: leaving.calls == 1)
        end = asyncio.create_task(leaving.listener.leave())
        await settle()
        assert [await cluster.call() for _ in range(3)] == ["b"] * 3
        leaving.hold.set()
        await asyncio.gather(end, *held)

    run(scenario())
