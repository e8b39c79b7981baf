"""How many CPUs each replica reserves, and how far each replica group may grow."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Reservations in Ray's logical CPUs."""

    router_cpus: float
    replica_cpus: float
    max_replicas: int


def plan(*, cluster_cpus: float, variants: int, threads: int, routers: int = 1) -> Plan:
    """Share a cluster's CPUs among the replica groups of the ladder.

    A cluster with room for two replicas of each variant gives each replica whole CPUs, as many as it
    has threads. On a smaller one that would leave variants without a replica, and Serve waiting for
    ever; there the replicas of all variants share the CPUs in time: each group may grow to one
    replica per `threads` CPUs, and reservations shrink until all fit.
    """
    if cluster_cpus >= routers + 2 * variants * threads:
        free = cluster_cpus - routers - (variants - 1) * threads
        return Plan(router_cpus=1, replica_cpus=threads, max_replicas=int(free // threads))
    max_replicas = max(1, int(cluster_cpus // threads))
    share = math.floor(1000 * cluster_cpus / (variants * max_replicas)) / 1000
    return Plan(router_cpus=0, replica_cpus=min(threads, share), max_replicas=max_replicas)
