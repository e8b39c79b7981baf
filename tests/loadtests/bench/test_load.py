"""The closed loop, against answers that a test gives over socket pairs: no ports, no server."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from loadtests.bench.client import encoded, result_of
from loadtests.bench.load import Load, Tally

OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"
REFUSED = b"HTTP/1.1 429 No\r\nContent-Length: 2\r\n\r\n{}"
Reply = Callable[[int], bytes | None]


class Far:
    """The other ends of all connections; each answers its requests by their number, None hangs up."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._lock = threading.Lock()
        self.requests: list[bytes] = []
        self.connections = 0
        self._threads: list[threading.Thread] = []

    def connect(self) -> socket.socket:
        near, far = socket.socketpair()
        self.connections += 1
        self._threads.append(threading.Thread(target=self._serve, args=(far,), daemon=True))
        self._threads[-1].start()
        return near

    def _serve(self, far: socket.socket) -> None:
        with far:
            while got := far.recv(1 << 16):
                with self._lock:
                    self.requests.append(got)
                    answer = self._reply(len(self.requests))
                if answer is None:
                    return
                far.sendall(answer)


def vectors(count: int) -> bytes:
    body = b'{"data": [%b]}' % b",".join(
        b'{"object": "embedding", "embedding": "AAAA"}' for _ in range(count)
    )
    return OK % (len(body), body)


@pytest.fixture(name="run")
def fixture_run() -> Iterator[Callable[..., tuple[Tally, Far]]]:
    loads: list[Load] = []

    def run(reply: Reply, *, texts: int = 2, clients: int = 3) -> tuple[Tally, Far]:
        far = Far(reply)
        loads.append(Load(far.connect, [encoded("/v1/x", "{}", texts)], clients=clients))
        return loads[-1].run(0.05), far

    yield run
    for load in loads:
        load.close()


def test_each_answer_counts_its_texts(run) -> None:
    """Every request that was sent is answered and counted when the run ends, over the same connections."""
    tally, far = run(lambda _: vectors(2))
    assert tally.texts == 2 * len(tally.latencies_ms) == 2 * len(far.requests) > 0
    assert far.connections == 3
    assert not tally.failures
    assert far.requests[0] == (
        b"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )


def test_refusals_and_missing_vectors_are_no_texts(run) -> None:
    """Another status, and another number of vectors than texts, are failures by their name."""
    tally, _ = run(lambda number: REFUSED if number % 2 else vectors(1))
    assert tally.texts == 0
    assert set(tally.failures) == {"429", "wrong number of vectors"}


def test_a_hang_up_is_a_failure_and_the_client_goes_on(run) -> None:
    """The first request is cut off; a new connection carries the rest."""
    tally, far = run(lambda number: None if number == 1 else vectors(2), clients=1)
    assert tally.failures == {"hung up": 1}
    assert far.connections == 2


def test_a_warm_up_takes_some_of_the_clients() -> None:
    """All are connected, and the others send nothing; the next run has all of them."""
    far = Far(lambda _: vectors(1))
    load = Load(far.connect, [encoded("/", "{}", 1)], clients=3)
    assert len(load.run(0, most_clients=1).latencies_ms) == 1
    assert len(load.run(0).latencies_ms) == 3
    load.close()


def test_a_result_without_an_answer_has_no_latency() -> None:
    """None, not zero: nothing was answered."""
    result = result_of(Tally(wall_s=1.0), 0.1)
    assert (result.requests, result.p50_ms, result.p99_ms) == (0, None, None)
