"""How many replicas each variant should have, from the work that is asked of it.

One engine answers one batch at a time, so demand in busy engines divided by the utilisation that
still meets budgets is the number of replicas. Up at once; down one step at a time, after a quiet
while, and only if the smaller group would have room to spare. What is held back by the CPUs is shared:
every wanted variant gets one replica before any gets two, the rest goes by demand (D'Hondt's method,
which never takes a replica from a variant whose own demand grew).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ASLEEP = 1e-5  # busy engines: even a request of 0.1 ms is more, and one of 10 ms fades in 30 s
SPARE = 0.85  # of the utilisation: a smaller group must fit below this, or the next burst undoes it


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What holds for a variant's replica group."""

    variant: str
    fidelity: float
    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What holds for all groups together."""

    slots: int  # replicas that the cluster's CPUs hold; minima are granted even above it
    quiet_s: float  # before a group loses a replica
    utilisation: float = 0.7  # busy share of an engine at which waits are still short


@dataclass(frozen=True, slots=True)
class Group:
    """A replica group's size, and when its demand last called for that size."""

    replicas: int
    needed_s: float


def scale(
    demand: Mapping[str, float],
    groups: Mapping[str, Group],
    *,
    bounds: Sequence[Bounds],
    rules: Rules,
    now_s: float,
) -> dict[str, Group]:
    """The groups' next sizes.

    Args:
        demand: busy engines by variant; a missing one has none.
        groups: what the last call returned; for a variant not in there, its minimum.
        bounds: of each variant.
        rules: of all.
        now_s: when, on the clock of `Group.needed_s`.
    """
    before = {b.variant: groups.get(b.variant) or Group(b.minimum, now_s) for b in bounds}
    asked = {b.variant: demand.get(b.variant, 0.0) for b in bounds}
    needed = {v: _needed(asked[v], rules.utilisation) for v in asked}
    held = {v: _held(asked[v], before[v], rules, now_s) for v in asked}
    sizes = {b.variant: b.minimum for b in bounds}
    for wanted in (needed, {v: group.replicas for v, group in held.items()}):
        _share_out(sizes, wanted, asked, bounds=bounds, slots=rules.slots)
    return {
        v: Group(size, held[v].needed_s if size == before[v].replicas else now_s)
        for v, size in sizes.items()
    }


def _needed(busy: float, utilisation: float) -> int:
    """Replicas that keep so many engines busy, none of them above the utilisation."""
    return 0 if busy < ASLEEP else math.ceil(busy / utilisation)


def _held(busy: float, group: Group, rules: Rules, now_s: float) -> Group:
    """The group as it is while its demand, with room to spare, calls for it; later one less."""
    if _needed(busy, rules.utilisation * SPARE) >= group.replicas:
        return Group(group.replicas, now_s)
    if now_s - group.needed_s < rules.quiet_s:
        return group
    return Group(max(group.replicas - 1, 0), now_s)


def _share_out(
    sizes: dict[str, int],
    wanted: Mapping[str, int],
    demand: Mapping[str, float],
    *,
    bounds: Sequence[Bounds],
    slots: int,
) -> None:
    """Grow `sizes` towards what is wanted, a replica at a time, while there is room."""
    for _ in range(slots - sum(sizes.values())):
        short = [b for b in bounds if sizes[b.variant] < min(wanted[b.variant], b.maximum)]
        if not short:
            return
        next_one = max(
            short,
            key=lambda b: (
                sizes[b.variant] == 0,
                demand[b.variant] / (sizes[b.variant] + 1),
                b.fidelity,
            ),
        )
        sizes[next_one.variant] += 1
