"""A server with variants, decisions and a capacity, in this process: what a run asks, without Ray."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VARIANTS = {"fake-fp32": (1.0, 0.2), "fake-int8": (0.997, 0.05)}  # fidelity, ms a token


@dataclass
class FakeCluster:
    """What a test sets, and what was asked."""

    capacity_per_s: float = 50.0
    key: str | None = None
    ready: bool = True
    infeasible_ms: float = 0.0  # budgets up to this are refused, also when idle
    ms_a_token: float = 0.0  # and those under so much for each token of the text
    url: str = ""
    routed: int = 0  # decisions asked for
    connections: int = 0
    pins: list[str | None] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    free_s: float = 0.0

    def take(self) -> bool:
        """Whether there is room in the queue of a fifth of a second."""
        with self.lock:
            now_s = time.monotonic()
            self.free_s = max(self.free_s, now_s)
            if self.free_s - now_s > 0.2:
                return False
            self.free_s += 1 / self.capacity_per_s
            return True


def tokens_of(given: str | list[str]) -> int:
    """A token a word, and two about each text."""
    texts = [given] if isinstance(given, str) else given
    return sum(len(text.split()) + 2 for text in texts)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    cluster: FakeCluster

    def setup(self) -> None:
        super().setup()
        self.cluster.connections += 1

    def do_GET(self) -> None:
        if self.path == "/ready":
            self._answer(200 if self.cluster.ready else 503, {})
        elif not self._let_in():
            self._answer(401, {"error": {"message": "a bad key"}})
        else:
            variants = [
                {
                    "variant": name,
                    "fidelity": fidelity,
                    "profile": {"cost_ms": cost_ms},
                    "replicas": 1,
                    "queued_tokens": 0,
                    "inflight_tokens": 0,
                }
                for name, (fidelity, cost_ms) in VARIANTS.items()
            ]
            self._answer(200, {"variants": variants})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tokens = tokens_of(body["input"])
        budget_ms = body.get("latency_ms", 1e9)
        feasible = budget_ms > self.cluster.infeasible_ms
        feasible = feasible and budget_ms >= self.cluster.ms_a_token * tokens
        if body["input"] == "refuse me":
            self._answer(400, {"error": {"message": "as you like"}})
            return
        if self.path == "/v1/route":
            self.cluster.routed += 1
            self._answer(200, {"admitted": feasible, "tokens": tokens})
            return
        self.cluster.pins.append(body.get("variant"))
        if not feasible or not self.cluster.take():
            self._answer(429, {"error": {"message": "too much work is queued"}})
            return
        variant = body.get("variant") or "fake-fp32"
        headers = {"X-Variant": variant, "X-Fidelity": f"{VARIANTS[variant][0]:.6f}"}
        self._answer(200, {"data": []}, headers)

    def _let_in(self) -> bool:
        key = self.cluster.key
        return key is None or self.headers["Authorization"] == f"Bearer {key}"

    def _answer(
        self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None
    ) -> None:
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
def serving(cluster: FakeCluster) -> Iterator[FakeCluster]:
    """Serve on a free port of this machine until the block ends."""
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": cluster}))
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
