"""Routers, replicas and clients on one simulated machine, and what became of every request."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

from loadtests.sim_replica import Attempt, Replica
from loadtests.sim_router import Router
from loadtests.sim_types import Machine, Policy, SimRequest
from loadtests.simulation import Simulation
from serve_app.policy.batching import short_batches

MakePolicy = Callable[[Machine, random.Random], Policy]
MOST_BACKOFF_S = 8.0
LEAST_RETRY_AFTER_S = 1.0  # the header counts whole seconds


class Outcome(IntEnum):
    """What can become of a request; each has exactly one."""

    OPEN = 0
    ON_TIME = 1
    REJECTED = 2
    LATE = 3
    HUNG_UP = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What clients do when they are not served at once."""

    retries: int = 0  # after a refusal or a late answer
    backoff_s: float = 1.0  # doubles with each; no less than the server's Retry-After
    jitter: float = 0.5  # of the wait, added at random
    hang_up_share: float = 0.0
    hang_up_after_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What runs where, and who asks."""

    routers: int = 1
    stale_s: float = 0.0  # by which policies learn late what replies say
    profile_error: float = 1.0  # by which the profiles that replicas promise are too fast
    habits: Habits = Habits()
    replicas: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    # by variant, when each of its replicas is up; one from the start where not given


@dataclass(eq=False, slots=True)
class Fate:
    """What became of all requests, by number."""

    outcomes: bytearray  # of first attempts
    variants: list[str]  # that they went to; empty for none
    latencies_ms: list[float]  # of those on time, else 0
    retried: list[tuple[float, Outcome]]  # when each further attempt arrived, and its outcome


class Cluster:
    """One run of requests against one policy."""

    def __init__(
        self,
        machine: Machine,
        make_policy: MakePolicy,
        *,
        seed: int,
        setup: Setup = Setup(),
        computed: Callable[[SimRequest], None] | None = None,
    ) -> None:
        """Nothing has happened yet.

        Args:
            machine: whose cores all share.
            make_policy: called once for each router.
            seed: of noise, clients and policies.
            setup: what runs where.
            computed: told of each request whose text an engine has computed, wanted or not.
        """
        self.simulation = Simulation(cores=machine.cores, together_pace=machine.together_pace)
        self._setup = setup
        self._machine = machine
        self._rng = random.Random(f"clients {seed}")  # noqa: S311
        self.replicas = {
            facts.variant: [
                Replica(
                    name=f"{facts.variant}-{number}",
                    simulation=self.simulation,
                    machine=machine,
                    profile=short_batches(facts.profile),
                    takes=machine.batches(facts),
                    promised=replace(
                        facts.profile,
                        base_ms=facts.profile.base_ms / setup.profile_error,
                        per_token_ms=facts.profile.per_token_ms / setup.profile_error,
                    ),
                    rng=random.Random(f"{facts.variant} {number} {seed}"),  # noqa: S311
                    ready_s=ready_s,
                    computed=computed,
                )
                for number, ready_s in enumerate(setup.replicas.get(facts.variant, (0.0,)))
            ]
            for facts in machine.variants
        }
        of_a_router = replace(machine, cores=machine.cores / setup.routers)
        self.policies = [
            make_policy(of_a_router, random.Random(f"policy {number} {seed}"))  # noqa: S311
            for number in range(setup.routers)
        ]
        self.routers = [
            Router(
                self.simulation,
                of_a_router,
                policy,
                clients=self,
                replicas=self.replicas,
                rng=random.Random(f"router {number} {seed}"),  # noqa: S311
                stale_s=setup.stale_s,
            )
            for number, policy in enumerate(self.policies)
        ]
        self._requests: Sequence[SimRequest] = ()
        self._next_number = 0
        self.fate = Fate(bytearray(), [], [], [])
        self._tell_readiness()

    def _tell_readiness(self) -> None:
        """Policies that care hear when a cold variant's first replica is up."""
        for variant, replicas in self.replicas.items():
            ready_s = min(replica.ready_s for replica in replicas)
            if ready_s:
                self._set_ready(variant, ready=False)
                self.simulation.at(ready_s, self._up, variant)

    def _up(self, variant: str) -> None:
        self._set_ready(variant, ready=True)

    def _set_ready(self, variant: str, *, ready: bool) -> None:
        for policy in self.policies:
            set_ready = getattr(policy, "set_ready", None)
            if set_ready is not None:
                set_ready(variant, ready=ready)

    def run(self, requests: Sequence[SimRequest]) -> Fate:
        """Run all of them, sorted by arrival and numbered from 0, to their ends."""
        self._requests = requests
        self._next_number = len(requests)
        self.fate = Fate(bytearray(len(requests)), [""] * len(requests), [0.0] * len(requests), [])
        if requests:
            self.simulation.at(requests[0].arrived_s, self._arrive, 0)
        self.simulation.run()
        return self.fate

    def _arrive(self, number: int) -> None:
        if number + 1 < len(self._requests):
            self.simulation.at(self._requests[number + 1].arrived_s, self._arrive, number + 1)
        request = self._requests[number]
        self._submit(Attempt(request, request.arrived_s))

    def _submit(self, attempt: Attempt) -> None:
        routers, habits = self.routers, self._setup.habits
        router = routers[0] if len(routers) == 1 else self._rng.choice(routers)
        if habits.hang_up_share and self._rng.random() < habits.hang_up_share:
            when_s = attempt.sent_s + habits.hang_up_after_ms / 1000
            self.simulation.at(when_s, self._hang_up, (attempt, router))
        way_s = self._machine.way_ms(self._rng) / 1000
        if way_s:
            arrived_s = attempt.sent_s + way_s
            attempt.request = replace(attempt.request, arrived_s=arrived_s)
            self.simulation.at(arrived_s, router.arrive, attempt)
        else:
            router.arrive(attempt)

    def _hang_up(self, who: tuple[Attempt, Router]) -> None:
        attempt, router = who
        if not attempt.ended:
            router.hang_up(attempt)
            self._end(attempt, Outcome.HUNG_UP)

    def refused(self, attempt: Attempt, *, retry_after_s: float | None) -> None:
        """See `sim_router.Clients`."""
        self._end(attempt, Outcome.REJECTED)
        self._try_again(attempt, retry_after_s)

    def expired(self, attempt: Attempt) -> None:
        """See `sim_router.Clients`."""
        self._end(attempt, Outcome.LATE)
        self._try_again(attempt, None)

    def answered(self, attempt: Attempt) -> None:
        """See `sim_router.Clients`. Whether that was in time is the client's to say."""
        way_ms = self._machine.way_ms(self._rng)
        latency_ms = (self.simulation.now_s - attempt.sent_s) * 1000 + way_ms
        if latency_ms <= attempt.request.budget_ms:
            if not attempt.attempt:
                self.fate.latencies_ms[attempt.request.number] = latency_ms
            self._end(attempt, Outcome.ON_TIME)
        else:
            self._end(attempt, Outcome.LATE)

    def _end(self, attempt: Attempt, outcome: Outcome) -> None:
        fate, request = self.fate, attempt.request
        if attempt.attempt:
            fate.retried.append((attempt.sent_s, outcome))
            return
        if fate.outcomes[request.number]:
            raise AssertionError(f"{request} ended twice")
        fate.outcomes[request.number] = outcome
        fate.variants[request.number] = attempt.variant

    def _try_again(self, attempt: Attempt, retry_after_s: float | None) -> None:
        habits = self._setup.habits
        if attempt.attempt >= habits.retries:
            return
        wait_s = min(habits.backoff_s * 2**attempt.attempt, MOST_BACKOFF_S)
        if retry_after_s is not None:
            wait_s = max(wait_s, retry_after_s, LEAST_RETRY_AFTER_S)
        wait_s *= 1 + habits.jitter * self._rng.random()
        self.simulation.at(self.simulation.now_s + wait_s, self._again, attempt)

    def _again(self, attempt: Attempt) -> None:
        now_s = self.simulation.now_s
        request = replace(attempt.request, number=self._next_number, arrived_s=now_s)
        self._next_number += 1
        self._submit(Attempt(request, now_s, attempt.attempt + 1))
