"""HTTP on a port of the router's own: uvicorn in its process, no proxy before it, no wrapper around a request.

On one host with one router a proxy has nobody to choose and nobody to send a request to again. What it
and Serve's ingress take beside it is in docs/fast-path.md.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve_app.asgi import AsgiApp
from serve_app.ports import family_of

BACKLOG = 2048  # connections that the kernel keeps while the router is busy
KEPT_ALIVE_S = 75  # a connection that asks nothing; balancers hang up after 60
LEAVE_WITHIN_S = 15  # of answers that are still under way
PATIENCE_S = 10.0  # until the router that this one replaces has let go of the port
LOOK_S = 0.2
# Of a request before its body, beside what comes at once with its begin.
MOST_HEAD_BYTES = 64 * 1024
TICK_S = 1.0  # between two looks at the clock, for the header `Date`


class HttpServer:
    """Listens from the first moment, serves once there is an application, leaves when told."""

    def __init__(self, host: str, port: int) -> None:
        """Take the port.

        Raises:
            OSError: it is taken, and stays so.
        """
        self._socket = _listen(host, port)
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def serve(self, app: AsgiApp) -> None:
        """Answer requests until `leave`, from a task of its own that outlives a cancelled caller."""
        config = uvicorn.Config(
            app,
            interface="asgi3",
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEPT_ALIVE_S,
            timeout_graceful_shutdown=LEAVE_WITHIN_S,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        await asyncio.shield(self._serving)

    @property
    def is_down(self) -> bool:
        """Whether it has stopped serving, told to or not."""
        return self._serving is not None and self._serving.done()

    async def leave(self) -> None:
        """Accept nobody any more, finish what is under way."""
        if self._server is None or self._serving is None:
            self._socket.close()
            return
        self._server.should_exit = True
        self._server.left.set()
        await asyncio.gather(self._serving, return_exceptions=True)


class _Server(uvicorn.Server):
    """A guest in Serve's process: signals are the host's, and an idle one wakes once a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.left = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self.left.wait(), TICK_S)


class _Connection(HttpToolsProtocol):
    """As uvicorn's, which takes heads of any size and waits for ever for the first one."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._heads, self._in_head, self._head_bytes = 0, True, 0
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._heads, self._in_head, self._head_bytes = self._heads + 1, True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        heads = self._heads
        super().data_received(data)
        if self._in_head and self._heads == heads:  # the same head goes on, with all of the data
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(
                    f"The request line and headers are over {MOST_HEAD_BYTES} bytes."
                )


def _listen(host: str, port: int) -> socket.socket:
    give_up_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return socket.create_server((host, port), family=family_of(host), backlog=BACKLOG)
        except OSError:
            if time.monotonic() > give_up_s:
                raise
        time.sleep(LOOK_S)
