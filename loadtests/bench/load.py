"""A closed loop of clients on one thread: each sends its next request when it has its answer.

Requests are encoded beforehand and connections stay open, so that the client takes little from the cores
that it shares with the server. Each run ends when its last answer is there: all work that was begun in
it was also finished in it.
"""

from __future__ import annotations

import itertools
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from loadtests.bench.http_reader import Answer, AnswerReader, BrokenAnswer

CHUNK_BYTES = 1 << 18
PAUSE_S = 0.05  # after an answer that brought no vectors: refused clients do not storm
# `"embedding":` is before each vector; "object": "embedding" is followed by a comma.
VECTOR_MARK = b'"embedding":'

Connect = Callable[[], socket.socket]


@dataclass(frozen=True, slots=True)
class Request:
    """Bytes to send, and how many vectors must come back."""

    sent: bytes
    texts: int


@dataclass(slots=True)
class Tally:
    """What came of a run."""

    latencies_ms: list[float] = field(default_factory=list)  # of whole answers
    texts: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    wall_s: float = 0.0


@dataclass(eq=False, slots=True)
class _Client:
    socket: socket.socket
    reader: AnswerReader
    request: Request
    sent_s: float = 0.0
    waits: bool = False  # for an answer


class Load:
    """Clients that stay connected from run to run; close them at the end."""

    def __init__(self, connect: Connect, requests: Sequence[Request], *, clients: int) -> None:
        self._connect = connect
        self._next: Iterator[Request] = itertools.cycle(requests)
        self._selector = selectors.DefaultSelector()
        self._clients = [_Client(connect(), AnswerReader(), requests[0]) for _ in range(clients)]

    def run(
        self, seconds: float, *, most_clients: int | None = None, patience_s: float = 180.0
    ) -> Tally:
        """Send for so long, then wait for what is on its way.

        Args:
            seconds: in which requests are sent.
            most_clients: how many of the clients take part; None for all.
            patience_s: how long to wait for the last answers.
        """
        tally, began_s = Tally(), time.perf_counter()
        until_s, taking_part = began_s + seconds, self._clients[:most_clients]
        for client in taking_part:
            self._selector.register(client.socket, selectors.EVENT_READ, client)
            self._send(client)
        waiting, resting = len(taking_part), list[tuple[float, _Client]]()
        while waiting:
            now_s = time.perf_counter()
            if now_s > until_s + patience_s:
                tally.failures["no answer"] += waiting
                break
            while resting and resting[0][0] <= now_s:
                waiting -= self._go_on(resting.pop(0)[1], now_s < until_s)
            pause_s = max(resting[0][0] - now_s, 0.0) if resting else 1.0
            for key, _ in self._selector.select(pause_s):
                client = key.data
                outcome = self._receive(client, tally)
                if outcome is None:
                    continue
                now_s = time.perf_counter()
                if outcome:
                    waiting -= self._go_on(client, now_s < until_s)
                else:
                    resting.append((now_s + PAUSE_S, client))
        tally.wall_s = time.perf_counter() - began_s
        for client in taking_part:
            self._selector.unregister(client.socket)
        return tally

    def close(self) -> None:
        """Hang up."""
        self._selector.close()
        for client in self._clients:
            client.socket.close()

    def _go_on(self, client: _Client, more: bool) -> int:  # noqa: FBT001
        """Send the next request if there is to be one; else this client is done: 1."""
        if more:
            self._send(client)
            return 0
        return 1

    def _send(self, client: _Client) -> None:
        client.request = next(self._next)
        client.sent_s, client.waits = time.perf_counter(), True
        try:
            client.socket.sendall(client.request.sent)
        except OSError:  # hung up meanwhile, as servers may on an idle connection: once more
            self._reconnect(client)
            client.socket.sendall(client.request.sent)

    def _receive(self, client: _Client, tally: Tally) -> bool | None:
        """Whether a whole answer brought its vectors; None while it has not all come."""
        if not client.waits:  # the server hung up on a client that rests
            self._reconnect(client)
            return None
        try:
            data = client.socket.recv(CHUNK_BYTES)
            answer = client.reader.feed(data)
        except (OSError, BrokenAnswer) as error:
            return self._failed(client, tally, type(error).__name__)
        if not data:
            return self._failed(client, tally, "hung up")
        return None if answer is None else self._take(client, answer, tally)

    def _take(self, client: _Client, answer: Answer, tally: Tally) -> bool:
        """Count a whole answer; whether it brought its vectors."""
        took_ms = (time.perf_counter() - client.sent_s) * 1000
        client.waits = False
        if not answer.keeps:
            self._reconnect(client)
        if answer.status != HTTPStatus.OK:
            tally.failures[str(answer.status)] += 1
            return False
        if answer.body.count(VECTOR_MARK) != client.request.texts:
            tally.failures["wrong number of vectors"] += 1
            return False
        tally.latencies_ms.append(took_ms)
        tally.texts += client.request.texts
        return True

    def _failed(self, client: _Client, tally: Tally, why: str) -> bool:
        tally.failures[why] += 1
        client.waits = False
        self._reconnect(client)
        return False

    def _reconnect(self, client: _Client) -> None:
        self._selector.unregister(client.socket)
        client.socket.close()
        client.socket, client.reader = self._connect(), AnswerReader()
        self._selector.register(client.socket, selectors.EVENT_READ, client)
