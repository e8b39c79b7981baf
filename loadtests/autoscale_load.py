"""A demand that moves: from one variant to another, then silence. Sent open loop, by one process."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import httpx
import psutil

SAMPLE_EVERY_S = 0.5
REPLICA = "ray::ServeReplica:embeddings:"
WORDS = 60  # of a text; about as many tokens
OK = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Poisson arrivals of one kind of request."""

    name: str
    seconds: float
    per_s: float
    rung: int  # which variant it pins, best first
    latency_ms: float


PHASES = (
    Phase(name="before", seconds=5, per_s=1, rung=-1, latency_ms=400),
    Phase(name="best wanted", seconds=25, per_s=24, rung=0, latency_ms=800),
    Phase(name="fast wanted", seconds=25, per_s=48, rung=-1, latency_ms=400),
    Phase(name="silence", seconds=25, per_s=0, rung=-1, latency_ms=400),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request."""

    phase: str
    due_s: float
    latency_ms: float  # from when it was due
    status: int  # 0: no answer
    in_time: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """Replica processes at one moment, those that start included: they hold a CPU already."""

    at_s: float
    replicas: dict[str, int]


def schedule(phases: Sequence[Phase], *, seed: int) -> Iterator[tuple[float, Phase]]:
    """When each request is due, in seconds from the start."""
    rng = random.Random(seed)  # noqa: S311
    start_s = 0.0
    for phase in phases:
        at_s = start_s
        while (
            phase.per_s and (at_s := at_s + rng.expovariate(phase.per_s)) < start_s + phase.seconds
        ):
            yield at_s, phase
        start_s += phase.seconds


def count_replicas(server: psutil.Process, variants: Sequence[str]) -> dict[str, int]:
    """Processes that are replicas, by variant."""
    found = dict.fromkeys(variants, 0)
    for process in server.children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:  # it has just ended
            continue
        name = words[0].removeprefix(REPLICA).partition(":")[0].partition(".")[0] if words else ""
        if name in found and words[0].startswith(REPLICA):
            found[name] += 1
    return found


async def play(
    url: str,
    phases: Sequence[Phase],
    variants: Sequence[str],
    *,
    seed: int,
    replicas: Callable[[], dict[str, int]],
) -> tuple[list[Answer], list[Sample]]:
    """Send it all, and count replicas meanwhile."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=10) as http:
        start_s = time.monotonic() + 0.5
        counting = asyncio.create_task(_count(start_s, sum(p.seconds for p in phases), replicas))
        sending = []
        for due_s, phase in schedule(phases, seed=seed):
            await asyncio.sleep(start_s + due_s - time.monotonic())
            body = {
                "input": "word " * WORDS,
                "variant": variants[phase.rung],
                "latency_ms": phase.latency_ms,
            }
            sending.append(asyncio.create_task(_ask(http, body, phase, due_s + start_s)))
        answers = await asyncio.gather(*sending)
        return [replace(a, due_s=a.due_s - start_s) for a in answers], await counting


async def _ask(
    http: httpx.AsyncClient, body: dict[str, object], phase: Phase, due_s: float
) -> Answer:
    try:
        status = (await http.post("/v1/embeddings", json=body)).status_code
    except httpx.HTTPError:
        status = 0
    latency_ms = (time.monotonic() - due_s) * 1000
    in_time = status == OK and latency_ms <= phase.latency_ms
    return Answer(phase.name, due_s, latency_ms, status, in_time)


async def _count(
    start_s: float, seconds: float, replicas: Callable[[], dict[str, int]]
) -> list[Sample]:
    samples = []
    while (at_s := time.monotonic() - start_s) < seconds:
        samples.append(Sample(at_s, await asyncio.to_thread(replicas)))
        await asyncio.sleep(SAMPLE_EVERY_S)
    return samples
