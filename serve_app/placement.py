"""How many CPUs each replica reserves, and how far each replica group may grow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.policy.scaling import Bounds
from serve_app.registry import Rung
from serve_app.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Reservations in Ray's logical CPUs."""

    router_cpus: float
    replica_cpus: float
    max_replicas: int  # of one variant
    slots: int  # replicas of all variants together that have CPUs to run on


def plan(*, cluster_cpus: float, variants: int, threads: int, routers: int = 1) -> Plan:
    """Share a cluster's CPUs among the replica groups of the ladder.

    A cluster with room for two replicas of each variant gives each replica whole CPUs, as many as it
    has threads. On a smaller one that would leave variants without a replica, and Serve waiting for
    ever; there the replicas of all variants share the CPUs in time: each group may grow to one
    replica per `threads` CPUs that the others' engines leave, and reservations shrink until all fit: a
    second engine on cores that are taken only slows the rest, and its start costs seconds of them
    (25 requests/s on two cores: 78 % in time with second replicas, 91 % without). Either way one group may be at
    its largest while the others keep a replica each, which is idle most of the time.
    """
    if cluster_cpus >= routers + 2 * variants * threads:
        free = cluster_cpus - routers - (variants - 1) * threads
        max_replicas = int(free // threads)
        return Plan(
            router_cpus=1,
            replica_cpus=threads,
            max_replicas=max_replicas,
            slots=max_replicas + variants - 1,
        )
    max_replicas = max(1, int((cluster_cpus - (variants - 1) * threads) // threads))
    share = math.floor(1000 * cluster_cpus / (variants * max_replicas)) / 1000
    return Plan(
        router_cpus=0,
        replica_cpus=min(threads, share),
        max_replicas=max_replicas,
        slots=max_replicas + variants - 1,
    )


def bounds(rungs: Sequence[Rung], found: Plan, settings: Settings) -> list[Bounds]:
    """Smallest and largest group of each variant.

    Where variants may go without replicas, the cheapest may not: it answers while others start. Serve's
    request counts never wake a variant that no request is sent to, so under them each keeps one.
    """
    cheapest = min(rungs, key=lambda r: r.manifest.profile.cost_ms)
    return [_bounds(rung, found, settings, kept=rung is cheapest) for rung in rungs]


def _bounds(rung: Rung, found: Plan, settings: Settings, *, kept: bool) -> Bounds:
    by_requests = settings.autoscaling == "requests"
    minimum = max(settings.min_replicas, 1 if kept or by_requests else 0)
    largest = settings.max_replicas or (1 if rung.device == "cuda" else found.max_replicas)
    return Bounds(
        variant=rung.manifest.variant,
        fidelity=rung.manifest.fidelity.p1,
        minimum=min(minimum, largest),
        maximum=largest,
    )
