"""The little of HTTP that the router needs, on bare ASGI: read a body, notice a hang-up, send JSON.

A framework on the hot route doubles Serve's own cost per request (0.36 → 0.70 CPU-ms), so there is
none; the routes are few and their paths fixed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson

from serve_app.errors import PayloadTooLarge, UnsupportedMediaType, shown

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Result = TypeVar("Result")

DRAINED_BYTES_PER_ALLOWED = 8  # how far past the limit a body is read, so that its sender hears 413


class ClientDisconnected(Exception):
    """Nobody waits for the answer."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, already encoded."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"

    @classmethod
    def json(
        cls, content: object, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Response:
        body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        return cls(body, status, headers or {})


def header(scope: Scope, name: bytes) -> str | None:
    """The value of a header (lower-case name), or None. The first one wins."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1").strip()
    return None


def client_of(scope: Scope) -> str:
    """Who asks: by API key, else by the address that a proxy passed on, else by that of the peer.

    A key is kept as its hash only. `X-Forwarded-For` is the word of whoever sent it: enough to share
    by in need, not to trust.
    """
    if key := header(scope, b"authorization"):
        return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    if forwarded := header(scope, b"x-forwarded-for"):
        return forwarded.partition(",")[0].strip()
    peer = scope.get("client")
    return str(peer[0]) if peer else ""


def require_json(scope: Scope) -> None:
    """Refuse a body that says it is not JSON; a missing content type passes, as `curl` users expect.

    Raises:
        UnsupportedMediaType: names the content type.
    """
    content_type = header(scope, b"content-type")
    if content_type is None:
        return
    kind = content_type.partition(";")[0].strip().lower()
    # curl -d sends the form type unless told otherwise.
    if kind in {"application/json", "application/x-www-form-urlencoded"} or kind.endswith("+json"):
        return
    raise UnsupportedMediaType(
        f"Content-Type must be application/json, got {shown(content_type)}", param="Content-Type"
    )


def asgi_app(
    handle: AsgiApp,
    *,
    beside: Callable[[], Iterable[Coroutine[Any, Any, None]]],
    leave: Callable[[], Awaitable[None]],
) -> AsgiApp:
    """A plain function, as Serve wants it, with work that runs beside the requests.

    The application is up at once: `/health` answers, and `/ready` when it is true.

    Args:
        handle: answers an HTTP request.
        beside: begun at the start, cancelled at the end.
        leave: awaited before that.
    """
    running: list[asyncio.Task[None]] = []

    async def lifespan(receive: Receive, send: Send) -> None:
        while (await receive())["type"] == "lifespan.startup":
            running.extend(asyncio.create_task(work) for work in beside())
            await send({"type": "lifespan.startup.complete"})
        await leave()
        for task in running:
            task.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await handle(scope, receive, send)
        elif scope["type"] == "lifespan":
            await lifespan(receive, send)

    return app


async def read_body(receive: Receive, *, limit_bytes: int) -> bytes:
    """The whole body.

    Raises:
        PayloadTooLarge: it is over the limit. It has been read, not kept, so that the sender, who
            reads only after sending, hears of it.
        ClientDisconnected: the client left before the end.
    """
    chunks: list[bytes] = []
    size, more = 0, True
    while more and size <= limit_bytes * DRAINED_BYTES_PER_ALLOWED:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        chunk = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(chunk)
        if size <= limit_bytes:
            chunks.append(chunk)
        else:
            chunks.clear()
    if size > limit_bytes:
        raise PayloadTooLarge(
            f"the body has {size} bytes{' and more' if more else ''}, the limit is {limit_bytes}; "
            "send fewer texts a request",
            param="body",
        )
    return b"".join(chunks)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The outcome of `work`, which is cancelled as soon as the client hangs up.

    Once the body is read, the next message can only be the hang-up.

    Raises:
        ClientDisconnected: the client has gone.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # a coroutine runs in a task
    before = task.cancelling()
    watch = asyncio.create_task(_cancel_when_gone(receive, task))
    try:
        return await work
    except asyncio.CancelledError:
        gone = watch.done() and not watch.cancelled() and watch.exception() is None
        if gone and watch.result() and task.uncancel() <= before:
            raise ClientDisconnected from None
        raise
    finally:
        watch.cancel()


async def _cancel_when_gone(receive: Receive, task: asyncio.Task[Any]) -> bool:
    message = await receive()
    return message["type"] == "http.disconnect" and task.cancel()


async def send_response(send: Send, response: Response) -> None:
    """Send status, headers and body."""
    headers = [
        (b"content-type", response.content_type.encode()),
        (b"content-length", str(len(response.body)).encode()),
    ]
    headers += [(k.lower().encode(), v.encode("latin-1")) for k, v in response.headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})
