"""What a request and a call cost beside the engine, measured on a quiet server of ours on this machine.

Decisions alone (`/v1/route`) show what the router takes for a request; answers by one variant show, on
top of that, what a call takes in the router and in the replica, beside the engine's own time. One request
at a time, so nothing is coalesced: a loaded server spends less on each.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import psutil

from loadtests.errors import NoServer
from loadtests.sampling import server_process

REQUESTS = 200
WARM = 20
ROUTER = ":router"
TEXT = "how do I reset my card pin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """Milliseconds; CPU but for `hop_ms`."""

    router_ms: float  # of the router, for each request
    call_ms: float  # of the router, for each call
    replica_call_ms: float  # of a replica, for each call
    around_ms: float  # of the client and the proxy, for each request
    hop_ms: float  # of latency that a call takes beside all CPU


@dataclass(frozen=True, slots=True)
class _Spent:
    """For each request: CPU by kind of process, and latency."""

    router_ms: float
    replicas_ms: float
    others_ms: float
    latency_ms: float
    inference_ms: float


def measure(host: str, *, variant: str, engine_ms: Callable[[int], float]) -> Overheads:
    """Measure on a server that does nothing else.

    Args:
        host: its URL, on this machine.
        variant: one that it serves.
        engine_ms: what that variant's engine takes for so many tokens.

    Raises:
        NoServer: its processes cannot be seen from here.
    """
    root = server_process(host)
    if root is None:
        raise NoServer(f"--machine-from={host}: overheads are measured on the server's own machine")
    body = {"input": TEXT, "variant": variant, "encoding_format": "base64"}
    with httpx.Client(base_url=host, timeout=30) as client:
        tokens = int(client.post("/v1/route", json=body).json()["tokens"])
        decided = _spent(root, client, "/v1/route", body)
        answered = _spent(root, client, "/v1/embeddings", body)
    call_ms = max(answered.router_ms - decided.router_ms, 0.0)
    replica_ms = max(answered.replicas_ms - engine_ms(tokens), 0.0)
    waited_ms = answered.latency_ms - decided.latency_ms - answered.inference_ms
    return Overheads(
        router_ms=decided.router_ms,
        call_ms=call_ms,
        replica_call_ms=replica_ms,
        around_ms=decided.others_ms,
        hop_ms=max(waited_ms - call_ms - replica_ms, 0.0),
    )


def _spent(root: psutil.Process, client: httpx.Client, path: str, body: dict[str, str]) -> _Spent:
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    for _ in range(WARM):
        client.post(path, content=content, headers=headers)
    before, own_s, began_s, inference_ms = (
        _cpu_s(root),
        time.process_time(),
        time.perf_counter(),
        0.0,
    )
    for _ in range(REQUESTS):
        answer = client.post(path, content=content, headers=headers)
        inference_ms += float(answer.headers.get("X-Inference-Ms", 0.0))
    latency_s, own_s = time.perf_counter() - began_s, time.process_time() - own_s
    after = _cpu_s(root)
    spent_s = {
        pid: (kind, cpu_s - before.get(pid, (kind, cpu_s))[1])
        for pid, (kind, cpu_s) in after.items()
    }

    def of(kind: str) -> float:
        return sum(cpu_s for found, cpu_s in spent_s.values() if found == kind) * 1000 / REQUESTS

    return _Spent(
        router_ms=of("router"),
        replicas_ms=of("replica"),
        others_ms=of("haproxy") + own_s * 1000 / REQUESTS,
        latency_ms=latency_s * 1000 / REQUESTS,
        inference_ms=inference_ms / REQUESTS,
    )


def _cpu_s(root: psutil.Process) -> dict[int, tuple[str, float]]:
    """CPU seconds of the server's processes so far, by process, with its kind."""
    found = {}
    for process in root.children(recursive=True):
        try:
            words, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        found[process.pid] = (_kind(words), times.user + times.system)
    return found


def _kind(words: str) -> str:
    if "ServeReplica" in words:
        return "router" if words.split(maxsplit=1)[0].endswith(ROUTER) else "replica"
    return (
        "haproxy"
        if "haproxy" in words.rsplit("/", maxsplit=1)[-1] or "/haproxy" in words
        else "other"
    )
