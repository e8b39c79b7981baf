"""The clairvoyant bound: what no policy can exceed on a machine, even one that knows all arrivals.

It is a fluid relaxation: every simplification lets the clairvoyant have more, never less.

- Time is cut into slots. A request may be computed in any slot that its window touches, in portions of
  any size, and as if the whole slot were its own.
- Its window is from when the router takes it up to the end of its budget. The router is one thread that
  takes `router_ms` for a request that it reads, and all before it took `refuse_ms` at least, which is what
  turning one away unread takes, in order of arrival, both as right after other work of its; here it does
  nothing else, and has a core of its own.
- It takes its share of the fullest batch that it can be in, without padding. Alone and at once it must
  make it, in a batch that is faster than the profile by its spread; or else no batch would.
- Cores give at most their number; the engine of a variant at most what its streams do with all of them to
  themselves. Two or more batches that run at once, of one engine or several, slow each other: together they
  do at most their cores over `together_pace`, or one what it does all by itself. Served requests also take
  their routing, and their share of the fullest call. While the router is busy, which it is at least as
  long as it would be with a core of its own, all engines together get at most what is left to them when
  all compete (processor sharing).
- A value is had for a part of a request as well.

The bound is then the optimum of a linear programme, from above by weak duality (`fluid.py`). It holds
for one router, one replica of each variant, and first attempts. Engines take what they take on the
machine (`Machine.batches`): log-normal noise around that only adds to the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtests.fluid import CORES, ENGINES, TOGETHER, Floats, Problem, solve
from loadtests.sim_results import worths
from loadtests.sim_types import Machine, SimRequest
from serve_app.policy.brain import VariantFacts

SLOT_MS = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Shares of all requests: each the most that a policy reaches which cares for nothing else.

    The gaps tell how far above the relaxation's optimum the bounds may be.
    """

    attainment: float
    fidelity: float  # normalised: see `sim_results.py`
    attainment_gap: float
    fidelity_gap: float


def bound(requests: Sequence[SimRequest], machine: Machine, *, slot_ms: float = SLOT_MS) -> Bound:
    """Bound the SLO attainment and the normalised fidelity of every policy from above."""
    count = len(requests)
    if not count:
        return Bound(attainment=1.0, fidelity=1.0, attainment_gap=0.0, fidelity_gap=0.0)
    worth = worths(machine)
    ordered = sorted(requests, key=lambda request: request.arrived_s)
    on_time, on_time_reached = solve(
        _problem(ordered, machine, [1.0] * len(machine.variants), slot_ms)
    )
    fidelity, fidelity_reached = solve(
        _problem(ordered, machine, [worth[v.variant] for v in machine.variants], slot_ms)
    )
    return Bound(
        attainment=on_time / count,
        fidelity=fidelity / count,
        attainment_gap=(on_time - on_time_reached) / count,
        fidelity_gap=(fidelity - fidelity_reached) / count,
    )


def _problem(
    requests: Sequence[SimRequest], machine: Machine, values: Sequence[float], slot_ms: float
) -> Problem:
    """The linear programme, times from the first arrival on."""
    origin_ms = requests[0].arrived_s * 1000
    arrived_ms = np.array([request.arrived_s * 1000 for request in requests]) - origin_ms
    tokens = np.array([float(request.tokens) for request in requests])
    budget_ms = np.array([request.budget_ms for request in requests])
    unread_ms = machine.unread_ms * machine.warm_share
    seen_ms = _routed(arrived_ms, unread_ms)
    begun_ms = np.maximum(seen_ms - unread_ms, 0.0)  # rounding makes the first negative
    routed_ms = begun_ms + machine.router_ms * machine.warm_share
    ends_ms = arrived_ms + budget_ms
    way_ms = machine.call_ms + machine.hop_ms + machine.replica_call_ms
    left_ms = ends_ms - routed_ms - way_ms
    able = np.stack([_alone(machine, v, tokens) <= left_ms for v in machine.variants])
    first = np.floor(begun_ms / slot_ms).astype(np.int64)
    last = np.maximum(np.floor(ends_ms / slot_ms).astype(np.int64), first)
    return Problem(
        value=np.where(able, np.array(values)[:, None], -1.0),
        work_ms=np.stack([_least_work(machine, v, tokens) for v in machine.variants]),
        side_ms=np.stack([_beside(machine, v, tokens) for v in machine.variants]),
        count=np.ones(len(requests)),
        first=first,
        last=last,
        capacity_ms=_capacity(machine, seen_ms, slots=int(last.max()) + 1, slot_ms=slot_ms),
    )


def _routed(arrived_ms: Floats, router_ms: float) -> Floats:
    """When each request's routing ends at the soonest: one after the other, in order of arrival."""
    done_ms = router_ms * np.arange(1, len(arrived_ms) + 1)
    late_ms: Floats = np.maximum.accumulate(arrived_ms - done_ms + router_ms)
    return late_ms + done_ms


def _alone(machine: Machine, facts: VariantFacts, tokens: Floats) -> Floats:
    takes = machine.batches(facts)
    return takes.ms(tokens) / takes.spread


def _least_work(machine: Machine, facts: VariantFacts, tokens: Floats) -> Floats:
    """A text's equal share of the fullest batch: no more texts fit beside it than of its own length."""
    takes = machine.batches(facts)
    texts: Floats = np.maximum(np.floor(facts.profile.batch_tokens / tokens), 1.0)
    return takes.base_ms / texts + takes.per_token_ms * tokens


def _beside(machine: Machine, facts: VariantFacts, tokens: Floats) -> Floats:
    """Work of the cores for a served request outside the engine, with its share of the fullest call."""
    call_tokens = facts.profile.batch_tokens
    call_ms = machine.call_ms + machine.replica_call_ms
    return machine.router_ms * machine.warm_share + call_ms * np.minimum(tokens / call_tokens, 1.0)


def _capacity(machine: Machine, seen_ms: Floats, *, slots: int, slot_ms: float) -> Floats:
    engines = len(machine.variants)
    batches = engines * machine.streams
    capacity_ms = np.full((ENGINES + engines, slots), slot_ms)
    capacity_ms[CORES] *= machine.cores
    undisturbed = _at_once(machine, batches, beside=0)
    beside_router = _at_once(machine, batches, beside=1)
    unread_ms = machine.unread_ms * machine.warm_share
    busy_ms = _busy(seen_ms, unread_ms, slots=slots, slot_ms=slot_ms)
    capacity_ms[TOGETHER] *= undisturbed
    capacity_ms[TOGETHER] -= (undisturbed - beside_router) * busy_ms
    capacity_ms[ENGINES:] *= _at_once(machine, machine.streams, beside=0)
    return capacity_ms


def _at_once(machine: Machine, batches: int, *, beside: int) -> float:
    """What up to so many batches do at once beside other jobs at most, in cores.

    Each has at most an equal share of the cores, so the more there are the more they do, `together_pace`
    slower from two on: all of them do the most, or one undisturbed.
    """
    one = min(1.0, machine.cores / (1 + beside))
    together = batches * min(1.0, machine.cores / (batches + beside))
    return one if batches == 1 else max(one, together / machine.together_pace)


def _busy(seen_ms: Floats, each_ms: float, *, slots: int, slot_ms: float) -> Floats:
    """How long the router is busy in each slot at least."""
    if not each_ms:
        return np.zeros(slots)
    edges_ms = np.arange(slots + 1) * slot_ms
    ended = np.searchsorted(seen_ms, edges_ms, side="right")
    following_ms = np.append(seen_ms, np.inf)[ended]
    begun_ms = np.maximum(each_ms - (following_ms - edges_ms), 0.0)
    return np.diff(ended * each_ms + begun_ms)
