"""What a router spends on refusing a request: at its door, or once it is read; in a flood of them.

The gate (`serve_app/policy/gate.py`) turns requests away only while the router cannot keep up, and one host's
clients do not bring it there. But a request that says that it is not JSON passes the same way: by the gate's
look, and to an error of the same kind, before a byte of its body is read. Many connections ask for that, then
for what is read and refused as no variant can make its budget, each again once it is answered: as in an
overload, where the router's caches are warm and all costs less than in quiet.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil

from loadtests.process_cpu import by_kind, cpu_s

CONNECTIONS = 16
ROUNDS = 3
ROUND_S = 1.0
NO_TIME_MS = 0.5  # no engine makes that
READ_BYTES = 1 << 16
END_OF_HEAD = b"\r\n\r\n"
LENGTH = b"content-length:"
REFUSED = b"HTTP/1.1 4"


@dataclass(frozen=True, slots=True)
class Door:
    """CPU of a busy router for a request that it refuses."""

    unread_ms: float
    read_ms: float


def measure_door(host: str, root: psutil.Process, *, text: str) -> Door | None:
    """Flood it with both; None where something else than a refusal comes back."""
    content = json.dumps({"input": text, "latency_ms": NO_TIME_MS}).encode()
    unread, read = (_request(host, content, kind) for kind in ("text/plain", "application/json"))
    spent_s, answers = {unread: 0.0, read: 0.0}, {unread: 0, read: 0}
    for _ in range(ROUNDS):
        for request in (unread, read):
            before = cpu_s(root)
            count = _flood(host, request, for_s=ROUND_S)
            if count is None:
                return None
            spent_s[request] += by_kind(before, cpu_s(root))["router"]
            answers[request] += count
    if not all(answers.values()) or not all(spent_s.values()):
        return None
    each_ms = {request: 1000 * spent_s[request] / answers[request] for request in spent_s}
    return Door(unread_ms=min(each_ms.values()), read_ms=each_ms[read])


def _request(host: str, content: bytes, kind: str) -> bytes:
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: {urlsplit(host).netloc}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def _flood(host: str, request: bytes, *, for_s: float) -> int | None:
    """Answers in a while, each followed by the next request; None if one was no refusal."""
    url, count = urlsplit(host), 0
    with ExitStack() as stack:
        asking = stack.enter_context(selectors.DefaultSelector())
        for _ in range(CONNECTIONS):
            one = stack.enter_context(socket.create_connection((url.hostname, url.port or 80)))
            one.sendall(request)
            asking.register(one, selectors.EVENT_READ, bytearray())
        until_s = time.perf_counter() + for_s
        while (left_s := until_s - time.perf_counter()) > 0:
            for key, _ in asking.select(left_s):
                connection, answer = key.fileobj, key.data
                assert isinstance(connection, socket.socket)  # noqa: S101  # as registered
                data = connection.recv(READ_BYTES)
                answer += data
                if not data or (is_whole(answer) and not answer.startswith(REFUSED)):
                    return None
                if is_whole(answer):
                    count += 1
                    answer.clear()
                    connection.sendall(request)
    return count


def is_whole(answer: bytes | bytearray) -> bool:
    """Whether an HTTP answer, which tells its length, is all there."""
    head, found, rest = bytes(answer).partition(END_OF_HEAD)
    if not found:
        return False
    _, told, after = head.lower().partition(LENGTH)
    return len(rest) >= (int(after.split(b"\r\n", 1)[0]) if told else 0)
