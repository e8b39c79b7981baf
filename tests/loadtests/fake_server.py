"""A server with the routes that load tests ask, whose answers a test can choose; no model, no Ray."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VARIANTS = {"onnx-fp32": (1.0, 0.1), "onnx-int8": (0.9971, 0.04)}  # fidelity, ms a token


@dataclass
class Reply:
    """How one request is answered."""

    status: int = 200
    after_s: float = 0.0
    variant: str = "onnx-fp32"


@dataclass
class FakeServer:
    """What a test sets, and what was asked."""

    reply: Callable[[dict[str, Any]], Reply] = lambda _: Reply()
    key: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)  # bodies
    connections: int = 0
    stalled: threading.Lock = field(default_factory=threading.Lock)  # held: nothing is answered
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: FakeServer

    def setup(self) -> None:
        super().setup()
        self.fake.connections += 1

    def do_GET(self) -> None:
        content: dict[str, Any] = {"status": "ready"}
        if self.path == "/v1/variants":
            content = {
                "variants": [
                    {"variant": name, "fidelity": fidelity, "profile": {"cost_ms": cost_ms}}
                    for name, (fidelity, cost_ms) in VARIANTS.items()
                ]
            }
        self._answer(200 if self.path == "/ready" else self._let_in(), content)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.fake.asked.append(body)
        with self.fake.stalled:
            pass
        reply = self.fake.reply(body)
        time.sleep(reply.after_s)
        status = reply.status if self._let_in() == 200 else 401
        variant = body.get("variant") or reply.variant
        fidelity = VARIANTS[variant][0]
        if status != 200:
            self._answer(status, {"error": {"message": f"told to\nanswer {status}"}})
            return
        routing = {"variant": variant, "fidelity": fidelity}
        headers = {"X-Variant": variant, "X-Fidelity": f"{fidelity:.6f}"}
        data = [{"object": "embedding", "index": 0, "embedding": "AACAPw=="}]
        self._answer(200, {"object": "list", "data": data, "routing": routing}, headers)

    def _let_in(self) -> int:
        wanted = f"Bearer {self.fake.key}"
        return 200 if self.fake.key is None or self.headers["Authorization"] == wanted else 401

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


@contextmanager
def running(fake: FakeServer | None = None) -> Iterator[FakeServer]:
    """Serve on a free port of this machine until the block ends."""
    fake = fake or FakeServer()
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = _Server(("127.0.0.1", 0), handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
