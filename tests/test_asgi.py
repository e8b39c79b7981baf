"""What the router needs of HTTP: who asks, and whether anybody still waits."""

import asyncio
from typing import Any

import pytest

from serve_app.asgi import ClientDisconnected, asgi_app, client_of, unless_gone


def _scope(peer: tuple[str, int] | None = ("10.0.0.1", 5), **headers: str) -> dict[str, Any]:
    sent = [(n.replace("_", "-").encode(), v.encode()) for n, v in headers.items()]
    return {"headers": sent, "client": peer}


class TestClientOf:
    """Whose share of the server a request counts to."""

    def test_a_key_is_known_by_its_hash_only(self) -> None:
        """The same key is the same client from any address; the key itself is nowhere kept."""
        one = client_of(_scope(authorization="Bearer sk-secret"))
        assert one == client_of(_scope(("10.9.9.9", 1), authorization="Bearer sk-secret"))
        assert one != client_of(_scope(authorization="Bearer sk-other"))
        assert "secret" not in one

    def test_without_a_key_the_forwarded_address_counts(self) -> None:
        """The first address of the list is the client, the others are proxies."""
        assert client_of(_scope(x_forwarded_for="1.2.3.4, 5.6.7.8")) == "1.2.3.4"
        key = client_of(_scope(x_forwarded_for="1.2.3.4", authorization="Bearer k"))
        assert key == client_of(_scope(authorization="Bearer k"))

    def test_else_the_peer_counts(self) -> None:
        """Its address without the port, which is another for each connection."""
        assert client_of(_scope(("10.0.0.1", 5))) == client_of(_scope(("10.0.0.1", 6)))
        assert client_of(_scope(None)) == client_of({"headers": []})


class Phone:
    """A client on the line until the test lets it hang up."""

    def __init__(self) -> None:
        self._hung_up = asyncio.Event()
        self.asked = 0

    async def receive(self) -> dict[str, Any]:
        self.asked += 1
        await self._hung_up.wait()
        return {"type": "http.disconnect"}

    def hang_up(self) -> None:
        self._hung_up.set()


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class TestUnlessGone:
    """Work for a client that may leave."""

    def test_the_outcome_is_the_works(self) -> None:
        """Result or error, as without a client; nothing listens to the client afterwards."""

        async def fail() -> None:
            raise KeyError("k")

        async def scenario() -> None:
            phone = Phone()
            assert await unless_gone(phone.receive, asyncio.sleep(0, "done")) == "done"
            with pytest.raises(KeyError):
                await unless_gone(phone.receive, fail())
            await _settle()
            assert len(asyncio.all_tasks()) == 1

        asyncio.run(scenario())

    def test_work_ends_when_the_client_hangs_up(self) -> None:
        """It is cancelled where it stands, and the caller hears why; the caller itself lives on."""
        ended: list[str] = []

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("given back")

        async def scenario() -> None:
            phone = Phone()

            async def handle() -> str:
                with pytest.raises(ClientDisconnected):
                    await unless_gone(phone.receive, work())
                await asyncio.sleep(0)
                return "lives on"

            task = asyncio.create_task(handle())
            await _settle()
            phone.hang_up()
            assert await task == "lives on"
            assert ended == ["given back"]

        asyncio.run(scenario())

    @pytest.mark.parametrize("hangs_up", [True, False])
    def test_a_server_that_stops_is_no_client_that_left(self, *, hangs_up: bool) -> None:
        """A cancellation from outside stays one, also when the client hangs up at the same time."""

        async def scenario() -> None:
            phone = Phone()
            task = asyncio.create_task(unless_gone(phone.receive, asyncio.Event().wait()))
            await _settle()
            if hangs_up:
                phone.hang_up()
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(scenario())

    def test_another_message_is_no_hang_up(self) -> None:
        """Whatever a server sends after the body, once, does not stop the work."""

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b""}

        async def work() -> int:
            await _settle()
            return 7

        async def scenario() -> int:
            return await unless_gone(receive, work())

        assert asyncio.run(scenario()) == 7


class TestAsgiApp:
    """What Serve runs: requests, and the work beside them."""

    def test_work_runs_from_startup_to_shutdown_beside_requests(self) -> None:
        """It begins before the start is confirmed and is cancelled once all have left; requests go through."""
        told: list[str] = []

        async def work() -> None:
            told.append("began")
            try:
                await asyncio.Event().wait()
            finally:
                told.append("ended")

        async def handle(scope: Any, receive: Any, send: Any) -> None:
            del scope, receive, send
            told.append("request")

        async def leave() -> None:
            told.append("left")

        async def scenario() -> None:
            app = asgi_app(handle, beside=lambda: [work()], leave=leave)
            orders: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
            sent: list[dict[str, Any]] = []

            async def send(message: Any) -> None:
                sent.append(message)

            orders.put_nowait({"type": "lifespan.startup"})
            life = asyncio.create_task(app({"type": "lifespan"}, orders.get, send))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await app({"type": "http"}, orders.get, send)
            orders.put_nowait({"type": "lifespan.shutdown"})
            await life
            await asyncio.sleep(0)
            assert [m["type"] for m in sent] == [
                "lifespan.startup.complete",
                "lifespan.shutdown.complete",
            ]

        asyncio.run(scenario())
        assert told == ["began", "request", "left", "ended"]
