"""What a request and a call cost beside the engine, measured on a quiet server of ours on this machine.

Decisions alone (`/v1/route`) show what the router takes for a request; answers by one variant show, on
top of that, what a call takes in the router and in the replica, beside the engine's own time. One request
at a time, `PER_S` a second: nothing is coalesced, and between requests caches go cold as they do in service,
where everything takes longer than back to back. What all processes spend without any request is measured
first and counted apart: it does not grow with the load. Then come the engines (`in_service.py`), and last,
as it makes the server sweat, what a refusal at the router's door costs (`door.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
import psutil

from loadtests.door import measure_door
from loadtests.errors import NoServer
from loadtests.in_service import InService, measure_engines
from loadtests.process_cpu import by_kind, cpu_s
from loadtests.sampling import server_process
from loadtests.sim_types import Fit
from loadtests.workload import Texts

REQUESTS = 300
WARM = 20
PER_S = 50.0
IDLE_S = 10.0
STALL_S = 0.001  # a loop that does nothing else is held up for longer: the host took the core
WATCHED_S = 5.0
LEAST_MS = 0.01
TEXT = "how do I reset my card pin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """Milliseconds; CPU but for `hop_ms`."""

    idle_cores: float  # of all processes, without any request
    router_ms: float  # of the router, for each request
    router_ms_per_token: float  # more of it, for each token
    warm_share: float  # of both, in a flood of requests
    refuse_ms: float | None  # of the router, for a request that it turns away unread
    call_ms: float  # of the router, for each call
    replica_call_ms: float  # of a replica, for each call
    proxy_ms: float  # of the proxy, for each request
    client_ms: float  # of the client, as well
    hop_ms: float  # of latency that a call takes beside all CPU
    outside_ms: float  # of median latency that a request takes outside of the router
    outside_spread: float  # its p95 / median
    stalls_per_s: float  # how often a core is taken away from whoever uses it
    stall_ms: float  # for how long, on average
    engines: InService


@dataclass(frozen=True, slots=True)
class Spent:
    """For each request: CPU by kind of process, what it takes at idle not counted, and latency."""

    router_ms: float
    replicas_ms: float
    proxy_ms: float
    client_ms: float
    latency_ms: float  # mean, and below median and p95
    median_ms: float
    p95_ms: float
    inference_ms: float
    tokens: int  # of the text


def measure(host: str, *, variant: str, profiles: Mapping[str, Fit]) -> Overheads:
    """Measure on a server that does nothing else.

    Args:
        host: its URL, on this machine.
        variant: the one to measure calls with: the cheapest, whose engine hides least.
        profiles: what the engines of all its variants promise to take.

    Raises:
        NoServer: its processes cannot be seen from here.
    """
    root = server_process(host)
    if root is None:
        raise NoServer(f"--machine-from={host}: overheads are measured on the server's own machine")
    body = {"input": TEXT, "variant": variant, "encoding_format": "base64"}
    long_body = body | {"input": Texts.built_in().pools[-1][0]}
    with httpx.Client(base_url=host, timeout=30) as client:
        idle = _idle_cores(root)
        decided = _spent(root, client, "/v1/route", body, idle=idle)
        long_decided = _spent(root, client, "/v1/route", long_body, idle=idle)
        answered = _spent(root, client, "/v1/embeddings", body, idle=idle)
        stalls_per_s, stall_ms = _stalls()
        cores = float(psutil.cpu_count() or 1) - sum(idle.values())
        engines = measure_engines(client, profiles, cores=cores)
    per_token_ms, router_ms = per_token(decided, long_decided)
    door = measure_door(host, root, text=TEXT)
    call_ms = max(answered.router_ms - decided.router_ms, 0.0)
    replica_ms = max(answered.replicas_ms - answered.inference_ms, 0.0)
    waited_ms = answered.latency_ms - decided.latency_ms - answered.inference_ms
    return Overheads(
        idle_cores=sum(idle.values()),
        router_ms=router_ms,
        router_ms_per_token=per_token_ms,
        refuse_ms=None if door is None else router_ms * door.unread_ms / door.read_ms,
        warm_share=1.0 if door is None else min(door.read_ms / decided.router_ms, 1.0),
        call_ms=call_ms,
        replica_call_ms=replica_ms,
        proxy_ms=decided.proxy_ms,
        client_ms=decided.client_ms,
        hop_ms=max(waited_ms - call_ms - replica_ms, 0.0),
        outside_ms=max(decided.median_ms - decided.router_ms, LEAST_MS),
        outside_spread=max(
            (decided.p95_ms - decided.router_ms)
            / max(decided.median_ms - decided.router_ms, LEAST_MS),
            1.0,
        ),
        stalls_per_s=stalls_per_s,
        stall_ms=stall_ms,
        engines=engines,
    )


def _idle_cores(root: psutil.Process) -> dict[str, float]:
    """Cores that each kind of process takes without any request."""
    before = cpu_s(root)
    time.sleep(IDLE_S)
    spent = by_kind(before, cpu_s(root))
    return {kind: spent_s / IDLE_S for kind, spent_s in spent.items()}


def per_token(short: Spent, long: Spent) -> tuple[float, float]:
    """CPU of the router for each token of a text, and for a text beside its tokens."""
    each_ms = max(long.router_ms - short.router_ms, 0.0) / max(long.tokens - short.tokens, 1)
    return each_ms, max(short.router_ms - each_ms * short.tokens, 0.0)


def _spent(
    root: psutil.Process,
    client: httpx.Client,
    path: str,
    body: dict[str, str],
    *,
    idle: Mapping[str, float],
) -> Spent:
    content = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    for _ in range(WARM):
        client.post(path, content=content, headers=headers)
    tokens = int(client.post("/v1/route", json=body).json()["tokens"])
    before, own_s, began_s = cpu_s(root), time.process_time(), time.perf_counter()
    latencies_ms, inference_ms = [], 0.0
    for number in range(REQUESTS):
        time.sleep(max(began_s + number / PER_S - time.perf_counter(), 0.0))
        sent_s = time.perf_counter()
        answer = client.post(path, content=content, headers=headers)
        latencies_ms.append((time.perf_counter() - sent_s) * 1000)
        inference_ms += float(answer.headers.get("X-Inference-Ms", 0.0))
    took_s, own_s = time.perf_counter() - began_s, time.process_time() - own_s
    spent = by_kind(before, cpu_s(root))

    def of(kind: str) -> float:
        return max(spent[kind] - idle.get(kind, 0.0) * took_s, 0.0) * 1000 / REQUESTS

    return Spent(
        router_ms=of("router"),
        replicas_ms=of("replica"),
        proxy_ms=of("haproxy"),
        client_ms=own_s * 1000 / REQUESTS,
        tokens=tokens,
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
