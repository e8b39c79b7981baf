"""`python -m loadtests.bench.client`: the load's own process, which is not counted as the server's.

A job comes in as one JSON line on stdin. After the warm-up it says `warm`, waits for a line, runs, and
says what came of it as a JSON line.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from dataclasses import asdict, dataclass

from loadtests.bench.load import Load, Request, Tally
from loadtests.bench.medians import percentile

HOST = "127.0.0.1"
WARM_CLIENTS = 16  # of 64 with 32 texts each one would wait for 2048 texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to send where; `bodies` are (JSON, texts in it)."""

    port: int
    path: str
    clients: int
    seconds: float
    warm_s: float
    bodies: list[tuple[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of it; latencies are None where nothing was answered."""

    texts: int
    requests: int
    failures: dict[str, int]
    wall_s: float
    client_cpu_s: float
    p50_ms: float | None
    p99_ms: float | None


def main() -> None:
    """Run one job."""
    job = Job(**json.loads(sys.stdin.readline()))
    load = Load(
        lambda: _connect(job.port),
        [encoded(job.path, body, texts) for body, texts in job.bodies],
        clients=job.clients,
    )
    if job.warm_s:
        load.run(job.warm_s, most_clients=WARM_CLIENTS)
    print("warm", flush=True)
    sys.stdin.readline()
    began_s = time.process_time()
    tally = load.run(job.seconds)
    print(json.dumps(asdict(result_of(tally, time.process_time() - began_s))), flush=True)
    load.close()


def encoded(path: str, body: str, texts: int) -> Request:
    """A request as it goes over the wire."""
    content = body.encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return Request(head.encode() + content, texts)


def result_of(tally: Tally, client_cpu_s: float) -> Result:
    """In short."""
    return Result(
        texts=tally.texts,
        requests=len(tally.latencies_ms),
        failures=dict(tally.failures),
        wall_s=tally.wall_s,
        client_cpu_s=client_cpu_s,
        p50_ms=percentile(tally.latencies_ms, 0.5),
        p99_ms=percentile(tally.latencies_ms, 0.99),
    )


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection((HOST, port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


if __name__ == "__main__":
    main()
