"""A router that is not there: one thread of work, the policy under test, a lane to each variant.

Mirrors `serve_app/router.py` and `serve_app/fleet.py`: all that arrives, requests and replies, waits for
the router's only thread.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

from loadtests.sim_lane import Lane
from loadtests.sim_replica import Attempt, Replica
from loadtests.sim_types import Machine, Policy, SimRequest
from loadtests.simulation import Simulation
from serve_app.policy.batching import short_batches
from serve_app.policy.load import Waiting
from serve_app.policy.replica_state import ReplicaState

T = TypeVar("T")
Job = tuple[float, float, bool, Callable[[Any], None], Any]
# since when, its work, whether it is a request at the door, what follows


@runtime_checkable
class Watcher(Protocol):
    """What the product's policy hears beyond what every policy does: calls, and what replies say."""

    retry_after_s: float | None  # of the last refusal

    def turns_away(self, lag_ms: float, *, now_s: float) -> bool:
        """Whether a request is refused before it is read."""
        ...

    def wait_in_line(self, request: SimRequest, variant: str, *, now_s: float) -> Waiting:
        """A text that was let in waits for its turn."""
        ...

    def can_make_it(self, variant: str, tokens: int, *, left_ms: float) -> bool:
        """Whether a text may still be in time, were it sent now."""
        ...

    def call_left(self, variant: str, tokens: int, *, now_s: float) -> Any:
        """A call leaves; what is returned comes back with its reply."""
        ...

    def call_ended(self, left: Any) -> None:
        """Its reply is there."""
        ...

    def saw(self, left: Any, state: ReplicaState, *, hop_ms: float, now_s: float) -> None:
        """What the reply says."""
        ...


class Clients(Protocol):
    """Who asks."""

    def refused(self, attempt: Attempt, *, retry_after_s: float | None) -> None:
        """429."""
        ...

    def answered(self, attempt: Attempt) -> None:
        """The vector, in time."""
        ...

    def expired(self, attempt: Attempt) -> None:
        """504."""
        ...


class Router:
    """One router process."""

    def __init__(  # noqa: PLR0913
        self,
        simulation: Simulation,
        machine: Machine,
        policy: Policy,
        *,
        clients: Clients,
        replicas: dict[str, list[Replica]],
        rng: random.Random,
        stale_s: float = 0.0,
    ) -> None:
        self.simulation = simulation
        self.machine = machine
        self.policy = policy
        self.watcher: Watcher | None = policy if isinstance(policy, Watcher) else None
        self.stale_s = stale_s  # by which the policy learns late what replies say
        self.decisions = 0
        self.turned_away = 0  # without one
        self._clients = clients
        self._rng = rng
        self._lanes = {
            facts.variant: Lane(
                self,
                facts.variant,
                short_batches(facts.profile),
                replicas[facts.variant],
                takes=machine.batches(facts),
            )
            for facts in machine.variants
        }
        self._jobs: deque[Job] = deque()
        self._busy = False
        self._ended_s = -math.inf  # its last job
        self.lag_ms = 0.0  # how long the last job that was begun had waited

    def inflight_tokens(self, variant: str) -> int:
        """For policies: see `View`."""
        return self._lanes[variant].inflight_tokens

    def inflight_requests(self, variant: str) -> int:
        """For policies: see `View`."""
        return self._lanes[variant].inflight_requests

    def busy_engines(self) -> int:
        """Of all variants, as far as this router knows."""
        return sum([lane.busy for lane in self._lanes.values()])

    def pump(self) -> None:
        """Lanes send while calls are free: always what has the first turn of all that may leave."""
        lanes = self._lanes.values()
        while ready := [lane for lane in lanes if lane.may_send()]:
            min(ready, key=Lane.next_turn_s).send_next()

    def arrive(self, attempt: Attempt) -> None:
        """A request is at the door."""
        around_s = (self.machine.proxy_ms + self.machine.client_ms) / 1000
        if around_s:
            self.simulation.compute_first(around_s, _nothing, None)
        machine = self.machine
        work_ms = machine.router_ms + machine.router_ms_per_token * attempt.request.tokens
        self._queue(work_ms, self._decide, attempt, at_door=True)

    def work(self, work_ms: float, do: Callable[[T], None], what: T) -> None:
        """Queue a job of the router's one thread."""
        self._queue(work_ms, do, what)

    def _queue(
        self, work_ms: float, do: Callable[[T], None], what: T, *, at_door: bool = False
    ) -> None:
        job = self.simulation.now_s, work_ms, at_door, do, what
        if self._busy:
            self._jobs.append(job)
        else:
            self._busy = True
            self._begin(job)

    def _begin(self, job: Job) -> None:
        """The thread takes up a job. Of a request at the door it sees only now whether it reads it."""
        since_s, work_ms, at_door, do, what = job
        now_s = self.simulation.now_s
        self.lag_ms = (now_s - since_s) * 1000
        if (
            at_door
            and self.watcher is not None
            and self.watcher.turns_away(self.lag_ms, now_s=now_s)
        ):
            work_ms, do = self.machine.unread_ms, self._turn_away
        if at_door:
            work_ms *= self.machine.warmth(now_s - self._ended_s)
        work_ms += self.machine.stalled_ms(work_ms, self._rng)
        self.simulation.compute_first(work_ms / 1000, self._worked, (do, what))

    def _worked(self, job: tuple[Callable[[T], None], T]) -> None:
        do, what = job
        self._ended_s = self.simulation.now_s
        do(what)
        if self._jobs:
            self._begin(self._jobs.popleft())
        else:
            self.lag_ms = 0.0
            self._busy = False

    def _turn_away(self, attempt: Attempt) -> None:
        if not attempt.ended:
            self.turned_away += 1
            self._refuse(attempt)

    def _refuse(self, attempt: Attempt) -> None:
        attempt.ended = True
        retry_after_s = self.watcher.retry_after_s if self.watcher else None
        self._clients.refused(attempt, retry_after_s=retry_after_s)

    def _decide(self, attempt: Attempt) -> None:
        if attempt.ended:
            return
        simulation = self.simulation
        self.decisions += 1
        variant = self.policy.decide(attempt.request, self, now_s=simulation.now_s)
        if variant is None:
            self._refuse(attempt)
            return
        attempt.variant = variant
        lane = self._lanes[variant]
        lane.hold(attempt)
        if simulation.now_s >= attempt.deadline_s:
            self._expire(attempt)
            return
        simulation.at(attempt.deadline_s, self._expire, attempt)
        lane.add(attempt)

    def _expire(self, attempt: Attempt) -> None:
        if not attempt.ended:
            self._lost(attempt)
            self._clients.expired(attempt)

    def hang_up(self, attempt: Attempt) -> None:
        """The client is gone, and with it the worth of its answer."""
        if attempt.variant:
            self._lost(attempt)
        attempt.ended = True

    def _lost(self, attempt: Attempt) -> None:
        attempt.ended = True
        lane = self._lanes[attempt.variant]
        lane.give_back(attempt)
        lane.cancel_if_unwanted(attempt.call)
        self.policy.late(attempt.request, attempt.variant, now_s=self.simulation.now_s)

    def answer(self, attempt: Attempt) -> None:
        """A vector is in the router's hand."""
        attempt.ended = True
        now_s, request = self.simulation.now_s, attempt.request
        self._lanes[attempt.variant].give_back(attempt)
        latency_ms = (now_s - request.arrived_s) * 1000
        self.policy.finished(request, attempt.variant, latency_ms=latency_ms, now_s=now_s)
        self._clients.answered(attempt)


def _nothing(_: object) -> None:
    """What follows the work of others."""
