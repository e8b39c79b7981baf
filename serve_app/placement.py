"""What each replica reserves of CPUs and GPUs, how many batches it runs at once, how far its group may grow."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from serve_app.engines.base import ONE_STREAM
from serve_app.errors import SettingsError
from serve_app.policy.scaling import Bounds
from serve_app.registry import Rung
from serve_app.settings import Settings


class Capacity(NamedTuple):
    """What a cluster may have to place replicas on."""

    cpus: float
    gpus: float

    @classmethod
    def of(cls, there: Mapping[str, float], settings: Settings) -> Capacity:
        """What is there, as Ray tells it, unless the settings say what it may grow to."""
        gpus = settings.cluster_gpus
        return cls(
            settings.cluster_cpus or there.get("CPU", 1),
            there.get("GPU", 0) if gpus is None else gpus,
        )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPlan:
    """Reservations of variants that run on GPUs."""

    share: float  # of one GPU, a replica; of its memory too
    max_replicas: int  # of one variant


MOST_STREAMS = 4  # unless asked for: each costs an OpenVINO replica its weights once more


def cores_of(settings: Settings) -> float:
    """Cores that the replicas of one host share: this one's, unless told otherwise."""
    return settings.cores or os.cpu_count() or 1


def streams_of(rung: Rung, settings: Settings, *, cores: float) -> int:
    """How many batches a replica runs side by side at most.

    Routers reckon with what replicas do: both ask here, each on its host, of hosts taken to be alike.
    """
    if rung.device == "cuda" or rung.manifest.runtime in ONE_STREAM:
        return 1
    return settings.streams or max(1, min(int(cores / settings.threads), MOST_STREAMS))


GPU_PARTS = 10_000  # Ray counts GPUs in these


def plan_gpus(*, gpus: float, variants: int, replicas_per_gpu: int | None = None) -> GpuPlan:
    """Share a cluster's GPUs among the variants that run on them.

    Unless told otherwise a replica has a GPU to itself, or as large a part of one as lets each variant
    have a replica: on an H100 one replica with batches twice as large does more than two (docs/gpu.md).

    Args:
        gpus: in the cluster.
        variants: that run on them, each with one replica at least.
        replicas_per_gpu: of all variants together; a variant may then grow over what is left.

    Raises:
        SettingsError: so few replicas leave a variant without one, and Serve waiting for ever.
    """
    cards = int(gpus)
    if variants == 0 or cards == 0:
        return GpuPlan(share=0.0, max_replicas=1)
    per_gpu = replicas_per_gpu or math.ceil(variants / cards)
    slots = per_gpu * cards
    if slots < variants:
        raise SettingsError(
            f"setting replicas_per_gpu: {per_gpu} on {cards} GPU(s) leave {variants - slots} of "
            f"{variants} variants without a replica; {math.ceil(variants / cards)} do not"
        )
    return GpuPlan(
        share=math.floor(GPU_PARTS / per_gpu) / GPU_PARTS,
        max_replicas=slots - variants + 1 if replicas_per_gpu else 1,
    )


def gpu_variants(rungs: Sequence[Rung]) -> int:
    """How many of a ladder's variants run on a GPU."""
    return sum(rung.device == "cuda" for rung in rungs)


def bounds(
    rungs: Sequence[Rung], found: Plan, settings: Settings, *, on_gpu: GpuPlan | None = None
) -> list[Bounds]:
    """Smallest and largest group of each variant.

    Where variants may go without replicas, the cheapest may not: it answers while others start. Serve's
    request counts never wake a variant that no request is sent to, so under them each keeps one.
    """
    cheapest = min(rungs, key=lambda r: r.manifest.profile.cost_ms)
    gpu_limit = on_gpu.max_replicas if on_gpu else 1
    return [
        _bounds(
            rung,
            settings,
            limit=gpu_limit if rung.device == "cuda" else found.max_replicas,
            kept=rung is cheapest,
        )
        for rung in rungs
    ]


def _bounds(rung: Rung, settings: Settings, *, limit: int, kept: bool) -> Bounds:
    by_requests = settings.autoscaling == "requests"
    minimum = max(settings.min_replicas, 1 if kept or by_requests else 0)
    largest = settings.max_replicas or limit
    return Bounds(
        variant=rung.manifest.variant,
        fidelity=rung.manifest.fidelity.p1,
        minimum=min(minimum, largest),
        maximum=largest,
    )
