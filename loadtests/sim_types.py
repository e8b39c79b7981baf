"""What simulated machines, requests and routing policies are to each other.

A policy here is anything that chooses: the product's own brain, or a baseline. Each sees a request
and a `View` of what it may know, and is told what became of the request. Times are seconds of the
simulation's clock.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from serve_app.policy.brain import VariantFacts

Floats = TypeVar("Floats", float, NDArray[np.float64])
# A core that did something else for so long has forgotten the router; fitted to its CPU at 20 and 40 requests/s.
COLD_AFTER_S = 0.003
P95 = 1.6449  # standard deviations of a normal distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class SimRequest:
    """One text with a budget."""

    number: int  # in order of arrival, from 0
    arrived_s: float
    tokens: int
    budget_ms: float  # from arrival to the answer
    client: str  # who asks: shares under overload count by client


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What a batch takes by its padded tokens, and its p95 / median."""

    base_ms: float
    per_token_ms: float
    spread: float = 1.0

    def ms(self, tokens: Floats) -> Floats:
        """Of a batch of so many padded tokens, or of each of several."""
        return self.base_ms + self.per_token_ms * tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One host: every variant has a replica, whose engine takes one thread for a batch, beside one router process.

    All of them share the cores.
    """

    cores: float
    streams: int = 1  # batches that a replica runs side by side, at most
    variants: tuple[VariantFacts, ...]
    router_ms: float = 0.0  # CPU of the router process for each request
    router_ms_per_token: float = 0.0  # more of it, for each token of the text
    refuse_ms: float | None = None  # for one that it turns away unread; None: as much
    warm_share: float = 1.0  # of router_ms and refuse_ms, right after other work of the router
    call_ms: float = (
        0.0  # CPU of the router process for each call, half to send and half for its reply
    )
    replica_call_ms: float = 0.0  # CPU of a replica for each call
    hop_ms: float = 0.0  # latency of a call beside any CPU, half each way
    proxy_ms: float = 0.0  # CPU of the proxy for each request, on the same cores
    client_ms: float = 0.0  # as well, of the client
    outside_ms: float = 0.0  # median latency of a request outside of the router, half each way
    outside_spread: float = 1.0  # its p95 / median
    engine_pace: float = 1.0  # what a batch takes in a server / in the profile's hot loop
    served: Mapping[str, Fit] = field(
        default_factory=dict, hash=False
    )  # instead, by variant, where measured
    together_pace: float = 1.0  # what a batch takes while another engine is busy / alone
    stalls_per_s: float = 0.0  # how often the host takes a core away, for each second of work on it
    stall_ms: float = 0.0  # for how long, on average

    def batches(self, facts: VariantFacts) -> Fit:
        """What a variant's batches take here, alone."""
        profile, pace = facts.profile, self.engine_pace
        found = self.served.get(facts.variant)
        if found is not None:
            return found
        return Fit(
            base_ms=profile.base_ms * pace,
            per_token_ms=profile.per_token_ms * pace,
            spread=max(profile.spread, 1.0),
        )

    def with_clients_elsewhere(self) -> Machine:
        """The same one, whose clients run on others."""
        return replace(self, client_ms=0.0)

    def warmth(self, idle_s: float) -> float:
        """Of the router's CPU for a request, how much it takes after so long without any work."""
        return self.warm_share + (1 - self.warm_share) * min(idle_s / COLD_AFTER_S, 1.0)

    @property
    def unread_ms(self) -> float:
        """The least CPU of the router for a request, whatever becomes of it."""
        return self.router_ms if self.refuse_ms is None else self.refuse_ms

    def way_ms(self, rng: random.Random) -> float:
        """Draw the latency between client and router, one way."""
        if self.outside_ms == 0:
            return 0.0
        return self.outside_ms / 2 * math.exp(rng.gauss(0.0, math.log(self.outside_spread) / P95))

    def stalled_ms(self, work_ms: float, rng: random.Random) -> float:
        """Draw what the host takes away while so much work is done."""
        if rng.random() >= self.stalls_per_s * work_ms / 1000:
            return 0.0
        return rng.expovariate(1 / self.stall_ms)


class View(Protocol):
    """What a router knows of its own work, without any reply: what a policy may read."""

    lag_ms: float  # how long jobs of its thread wait now

    def inflight_tokens(self, variant: str) -> int:
        """Tokens of this router's requests that were admitted to a variant and have not ended."""
        ...

    def inflight_requests(self, variant: str) -> int:
        """The number of those requests."""
        ...


class Policy(Protocol):
    """Chooses a variant for each request of one router, and hears what became of it."""

    def decide(self, request: SimRequest, view: View, *, now_s: float) -> str | None:
        """The variant for a request, or None: it is refused."""
        ...

    def finished(
        self, request: SimRequest, variant: str, *, latency_ms: float, now_s: float
    ) -> None:
        """The answer left, in time or not, `latency_ms` after the request's arrival."""
        ...

    def late(self, request: SimRequest, variant: str, *, now_s: float) -> None:
        """The budget passed, or the client hung up, before there was an answer."""
        ...
