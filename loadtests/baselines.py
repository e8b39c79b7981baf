"""Other ways to choose a variant, to hold the product's against: each a page of the literature, in short.

None of them refuses a request. Where they predict, they do so from the profile and from what their router
has in flight, as all but the product's do: batches of the tokens ahead and of the request's own.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

from loadtests.sim_types import Machine, Policy, SimRequest, View
from serve_app.policy.brain import VariantFacts
from serve_app.policy.forecast import batches_ms

BLACKLISTED_S = 2.0


class _Oblivious:
    """What became of requests teaches it nothing."""

    def finished(
        self, request: SimRequest, variant: str, *, latency_ms: float, now_s: float
    ) -> None:
        """See `sim_types.Policy`."""

    def late(self, request: SimRequest, variant: str, *, now_s: float) -> None:
        """See `sim_types.Policy`."""


class Only(_Oblivious):
    """One variant for all: what a server without variants does."""

    def __init__(self, facts: VariantFacts) -> None:
        self._variant = facts.variant

    def decide(self, _request: SimRequest, _view: View, *, now_s: float) -> str | None:
        del now_s
        return self._variant


class StaticSplit(_Oblivious):
    """At random, each variant in proportion to its capacity: weighted routing, as service meshes have it."""

    def __init__(self, machine: Machine, rng: random.Random) -> None:
        self._rng = rng
        self._names = [v.variant for v in machine.variants]
        self._capacities = [1 / v.profile.cost_ms for v in machine.variants]

    def decide(self, _request: SimRequest, _view: View, *, now_s: float) -> str | None:
        del now_s
        return self._rng.choices(self._names, self._capacities)[0]


class RoundRobin(_Oblivious):
    """One after the other, whatever they cost."""

    def __init__(self, machine: Machine, _rng: random.Random) -> None:
        self._turns = itertools.cycle([v.variant for v in machine.variants])

    def decide(self, _request: SimRequest, _view: View, *, now_s: float) -> str | None:
        del now_s
        return next(self._turns)


class TwoChoices(_Oblivious):
    """Of two at random, the one with the shorter predicted wait (Mitzenmacher 2001)."""

    def __init__(self, machine: Machine, rng: random.Random) -> None:
        self._rng = rng
        self._variants = machine.variants

    def decide(self, _request: SimRequest, view: View, *, now_s: float) -> str | None:
        del now_s
        drawn = self._rng.sample(self._variants, min(2, len(self._variants)))
        return min(drawn, key=lambda v: _wait_ms(v, view)).variant


class MinimumPredicted(_Oblivious):
    """The variant that is predicted to answer first (as llm-d's predicted-latency routing)."""

    def __init__(self, machine: Machine, _rng: random.Random) -> None:
        self._variants = machine.variants

    def decide(self, request: SimRequest, view: View, *, now_s: float) -> str | None:
        del now_s
        return min(self._variants, key=lambda v: _latency_ms(v, request, view)).variant


class Infaas:
    """The highest fidelity whose profiled latency behind its queue fits the budget (INFaaS, ATC'21).

    A variant that misses a budget counts as overloaded or interfered with, and is passed over for a
    while. Where none is left that fits, the one predicted to answer first takes the request.
    """

    def __init__(self, machine: Machine, _rng: random.Random) -> None:
        self._hop_ms = machine.hop_ms
        self._variants = sorted(machine.variants, key=lambda v: (-v.fidelity, v.profile.cost_ms))
        self._passed_over_until_s = dict.fromkeys((v.variant for v in machine.variants), -math.inf)

    def decide(self, request: SimRequest, view: View, *, now_s: float) -> str | None:
        left_ms = request.budget_ms - (now_s - request.arrived_s) * 1000 - self._hop_ms
        for v in self._variants:
            passed_over = now_s < self._passed_over_until_s[v.variant]
            if not passed_over and _latency_ms(v, request, view) <= left_ms:
                return v.variant
        return min(self._variants, key=lambda v: _latency_ms(v, request, view)).variant

    def finished(
        self, request: SimRequest, variant: str, *, latency_ms: float, now_s: float
    ) -> None:
        if latency_ms > request.budget_ms:
            self.late(request, variant, now_s=now_s)

    def late(self, _request: SimRequest, variant: str, *, now_s: float) -> None:
        self._passed_over_until_s[variant] = now_s + BLACKLISTED_S


def _wait_ms(facts: VariantFacts, view: View) -> float:
    return batches_ms(facts.profile, view.inflight_tokens(facts.variant))


def _latency_ms(facts: VariantFacts, request: SimRequest, view: View) -> float:
    return _wait_ms(facts, view) + batches_ms(facts.profile, request.tokens)


def _always_best(machine: Machine, _rng: random.Random) -> Policy:
    """The highest fidelity, whatever the budget; of equals the cheaper."""
    return Only(max(machine.variants, key=lambda v: (v.fidelity, -v.profile.cost_ms)))


def _always_fastest(machine: Machine, _rng: random.Random) -> Policy:
    """The cheapest, whatever its fidelity."""
    return Only(min(machine.variants, key=lambda v: v.profile.cost_ms))


BASELINES: dict[str, Callable[[Machine, random.Random], Policy]] = {
    "always best": _always_best,
    "always fastest": _always_fastest,
    "static split": StaticSplit,
    "round robin": RoundRobin,
    "two random choices": TwoChoices,
    "INFaaS-style": Infaas,
    "minimum predicted": MinimumPredicted,
}
