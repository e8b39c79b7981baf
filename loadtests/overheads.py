"""What a request and a call cost beside the engine, measured on a quiet server of ours on this machine.

Decisions alone (`/v1/route`) show what the router takes for a request; answers by one variant show, on
top of that, what a call takes in the router and in the replica, beside the engine's own time. One request
at a time, `PER_S` a second: nothing is coalesced, and between requests caches go cold as they do in service,
where everything takes longer than back to back. What all processes spend without any request is measured
first and counted apart: it does not grow with the load.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx
import psutil

from loadtests.errors import NoServer
from loadtests.sampling import server_process

REQUESTS = 300
WARM = 20
PER_S = 50.0
IDLE_S = 10.0
STALL_S = 0.001  # a loop that does nothing else is held up for longer: the host took the core
WATCHED_S = 5.0
LEAST_MS = 0.01
REPLICA, ROUTER = "ray::ServeReplica:", "router"
TEXT = "how do I reset my card pin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """Milliseconds; CPU but for `hop_ms`."""

    idle_cores: float  # of all processes, without any request
    router_ms: float  # of the router, for each request
    call_ms: float  # of the router, for each call
    replica_call_ms: float  # of a replica, for each call
    around_ms: float  # of the client and the proxy, for each request
    hop_ms: float  # of latency that a call takes beside all CPU
    outside_ms: float  # of median latency that a request takes outside of the router
    outside_spread: float  # its p95 / median
    engine_pace: float  # what a batch takes here / what the profile says
    stalls_per_s: float  # how often a core is taken away from whoever uses it
    stall_ms: float  # for how long, on average


@dataclass(frozen=True, slots=True)
class _Spent:
    """For each request: CPU by kind of process, what it takes at idle not counted, and latency."""

    router_ms: float
    replicas_ms: float
    others_ms: float
    latency_ms: float  # mean, and below median and p95
    median_ms: float
    p95_ms: float
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
        idle = _idle_cores(root)
        decided = _spent(root, client, "/v1/route", body, idle=idle)
        answered = _spent(root, client, "/v1/embeddings", body, idle=idle)
    call_ms = max(answered.router_ms - decided.router_ms, 0.0)
    engine_pace = max(answered.inference_ms / engine_ms(tokens), 1.0)
    replica_ms = max(answered.replicas_ms - engine_pace * engine_ms(tokens), 0.0)
    stalls_per_s, stall_ms = _stalls()
    waited_ms = answered.latency_ms - decided.latency_ms - answered.inference_ms
    return Overheads(
        idle_cores=sum(idle.values()),
        router_ms=decided.router_ms,
        call_ms=call_ms,
        replica_call_ms=replica_ms,
        around_ms=decided.others_ms,
        hop_ms=max(waited_ms - call_ms - replica_ms, 0.0),
        outside_ms=max(decided.median_ms - decided.router_ms, LEAST_MS),
        outside_spread=max(
            (decided.p95_ms - decided.router_ms)
            / max(decided.median_ms - decided.router_ms, LEAST_MS),
            1.0,
        ),
        engine_pace=engine_pace,
        stalls_per_s=stalls_per_s,
        stall_ms=stall_ms,
    )


def _idle_cores(root: psutil.Process) -> dict[str, float]:
    """Cores that each kind of process takes without any request."""
    before = _cpu_s(root)
    time.sleep(IDLE_S)
    spent = _by_kind(before, _cpu_s(root))
    return {kind: cpu_s / IDLE_S for kind, cpu_s in spent.items()}


def _spent(
    root: psutil.Process,
    client: httpx.Client,
    path: str,
    body: dict[str, str],
    *,
    idle: Mapping[str, float],
) -> _Spent:
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    for _ in range(WARM):
        client.post(path, content=content, headers=headers)
    before, own_s, began_s = _cpu_s(root), time.process_time(), time.perf_counter()
    latencies_ms, inference_ms = [], 0.0
    for number in range(REQUESTS):
        time.sleep(max(began_s + number / PER_S - time.perf_counter(), 0.0))
        sent_s = time.perf_counter()
        answer = client.post(path, content=content, headers=headers)
        latencies_ms.append((time.perf_counter() - sent_s) * 1000)
        inference_ms += float(answer.headers.get("X-Inference-Ms", 0.0))
    took_s, own_s = time.perf_counter() - began_s, time.process_time() - own_s
    spent = _by_kind(before, _cpu_s(root))

    def of(kind: str) -> float:
        return max(spent[kind] - idle.get(kind, 0.0) * took_s, 0.0) * 1000 / REQUESTS

    return _Spent(
        router_ms=of("router"),
        replicas_ms=of("replica"),
        others_ms=of("haproxy") + own_s * 1000 / REQUESTS,
        latency_ms=sum(latencies_ms) / REQUESTS,
        median_ms=sorted(latencies_ms)[REQUESTS // 2],
        p95_ms=sorted(latencies_ms)[int(0.95 * REQUESTS)],
        inference_ms=inference_ms / REQUESTS,
    )


def _stalls() -> tuple[float, float]:
    """How often, and for how many milliseconds on average, this process is held up at work."""
    gaps: list[float] = []
    began_s = last_s = now_s = time.perf_counter()
    while now_s < began_s + WATCHED_S:
        now_s = time.perf_counter()
        if now_s - last_s > STALL_S:
            gaps.append(now_s - last_s)
        last_s = now_s
    return len(gaps) / WATCHED_S, 1000 * sum(gaps) / len(gaps) if gaps else 0.0


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


def _by_kind(
    before: Mapping[int, tuple[str, float]], after: Mapping[int, tuple[str, float]]
) -> dict[str, float]:
    """CPU seconds between two looks, of each kind of process."""
    spent: dict[str, float] = defaultdict(float)
    for pid, (kind, cpu_s) in after.items():
        spent[kind] += cpu_s - before.get(pid, (kind, cpu_s))[1]
    return spent


def _kind(words: str) -> str:
    """Of a process, by its title: Ray names workers by actor and, while one runs, by method."""
    if words.startswith(REPLICA):
        deployment = words.split(maxsplit=1)[0].rpartition(":")[2].partition(".")[0]
        return "router" if deployment == ROUTER else "replica"
    return "haproxy" if "/haproxy" in words else "other"
