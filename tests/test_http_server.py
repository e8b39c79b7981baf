"""The router's own port: there from the first moment, and left without losing an answer."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx
import pytest

from serve_app import http_server
from serve_app.asgi import Receive, Response, Scope, Send, send_response
from serve_app.http_server import HttpServer
from serve_app.ports import LOCALHOST, free_port

Heard = TypeVar("Heard")


@pytest.fixture
def port() -> int:
    return free_port()


async def _hello(scope: Scope, receive: Receive, send: Send) -> None:
    del receive
    await send_response(send, Response.json({"path": scope["path"]}))


async def _ask(port: int, path: str = "/") -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://{LOCALHOST}:{port}{path}", timeout=30)


def test_whoever_comes_before_the_application_waits_for_it(port: int) -> None:
    """A request that is there before the router can serve is answered; only after leaving is the server down."""

    async def scenario() -> httpx.Response:
        server = HttpServer(LOCALHOST, port)
        early = asyncio.create_task(_ask(port, "/early"))
        await asyncio.sleep(0.05)
        assert not server.is_down
        serving = asyncio.create_task(server.serve(_hello))
        answer = await early
        assert not server.is_down
        await server.leave()
        await serving
        assert server.is_down
        return answer

    answer = asyncio.run(scenario())
    assert answer.json() == {"path": "/early"}
    assert "date" in answer.headers
    assert "server" not in answer.headers


@pytest.mark.parametrize("cancelled", [False, True])
def test_leaving_finishes_what_is_under_way(port: int, *, cancelled: bool) -> None:
    """A request in progress gets its answer, a new one no connection, also once the task is cancelled."""

    async def scenario() -> httpx.Response:
        begun, go = asyncio.Event(), asyncio.Event()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            begun.set()
            await go.wait()
            await _hello(scope, receive, send)

        server = HttpServer(LOCALHOST, port)
        serving = asyncio.create_task(server.serve(slow))
        asked = asyncio.create_task(_ask(port))
        await begun.wait()
        if cancelled:
            serving.cancel()
        leaving = asyncio.create_task(server.leave())
        while not await _refused(port):  # noqa: ASYNC110 (nobody tells when the kernel refuses)
            await asyncio.sleep(0.05)
        assert not leaving.done()
        go.set()
        await leaving
        await asyncio.gather(serving, return_exceptions=True)
        return await asked

    assert asyncio.run(scenario()).json() == {"path": "/"}


async def _refused(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(LOCALHOST, port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


@pytest.mark.parametrize("begin", [b"GET / HTTP/1.1\r\nhost: a\r\nx-long: ", b"GET /"])
def test_a_head_without_end_is_refused(port: int, begin: bytes) -> None:
    """Somebody who sends headers or a path for ever is hung up on; others are answered."""

    async def scenario(writer: asyncio.StreamWriter) -> httpx.Response:
        with contextlib.suppress(ConnectionError):
            writer.write(begin)
            while True:
                writer.write(b"x" * 10_000)
                await writer.drain()
        return await _ask(port)

    assert asyncio.run(_talk(port, lambda _, writer: scenario(writer))).json() == {"path": "/"}


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"GET / HTTP/1.1\r\nx-long: " + b"x" * 50_000 + b"\r\n\r\n", b"HTTP/1.1 200 "),
        (b"GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", b"HTTP/1.1 200 "),
        (b"no HTTP at all\r\n\r\n", b"HTTP/1.1 400 "),
        (b"", b""),
    ],
)
def test_strangers_hear_what_is_wrong_and_take_no_place(
    port: int, monkeypatch: pytest.MonkeyPatch, sent: bytes, answer: bytes
) -> None:
    """Long headers and offers of another protocol are passed over, other talk refused, silence is hung up on."""
    monkeypatch.setattr(http_server, "KEPT_ALIVE_S", 0.2)

    async def scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(sent)
        return await asyncio.wait_for(reader.read(), 30)

    heard = asyncio.run(_talk(port, scenario))
    assert heard.startswith(answer)
    assert bool(heard) == bool(answer)


async def _talk(
    port: int,
    scenario: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[Heard]],
) -> Heard:
    """What comes of a connection to a server that says hello."""
    server = HttpServer(LOCALHOST, port)
    serving = asyncio.create_task(server.serve(_hello))
    reader, writer = await asyncio.open_connection(LOCALHOST, port)
    heard = await scenario(reader, writer)
    writer.close()
    await server.leave()
    await serving
    return heard


def test_one_that_never_served_gives_its_port_back(port: int) -> None:
    """A router that ends before it was asked to serve leaves nothing behind."""

    async def scenario() -> bool:
        server = HttpServer(LOCALHOST, port)
        await server.leave()
        return await _refused(port)

    assert asyncio.run(scenario())


def test_a_port_that_another_lets_go_of_is_taken_over(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that replaces a dying one waits for its port."""
    before = socket.create_server((LOCALHOST, port))
    monkeypatch.setattr(http_server.time, "sleep", lambda _: before.close())
    server = HttpServer(LOCALHOST, port)
    asyncio.run(server.leave())


def test_a_port_that_stays_taken_is_an_error(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers never share a port: the second says that it is taken."""
    monkeypatch.setattr(http_server, "PATIENCE_S", 0.0)
    monkeypatch.setattr(http_server, "LOOK_S", 0.01)
    with (
        socket.create_server((LOCALHOST, port)),
        pytest.raises(OSError, match="Address already in use"),
    ):
        HttpServer(LOCALHOST, port)
