"""A replica that is not there: the batcher of `serve_app/replica.py` over a profile instead of an engine."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from loadtests.sim_types import P95, Fit, Machine, SimRequest
from loadtests.simulation import Simulation
from serve_app.manifest import Profile
from serve_app.policy.batching import next_batch
from serve_app.policy.load import Waiting
from serve_app.policy.replica_state import ReplicaState


@dataclass(eq=False, slots=True)
class Attempt:
    """One request on its way; a client that tries again makes another."""

    request: SimRequest  # as the router sees it: it arrived there, and its budget counts from then
    sent_s: float
    attempt: int = 0  # how many went before
    variant: str = ""
    ended: bool = False
    call: Call | None = None
    turn_s: float = 0.0
    waiting: Waiting | None = None  # in the lines of the router's policy

    @property
    def deadline_s(self) -> float:
        """When the router gives up."""
        return self.request.arrived_s + self.request.budget_ms / 1000


class Sender(Protocol):
    """Who sent a call, and waits for its reply."""

    def reply(self, call: Call) -> None:
        """The call leaves the replica."""
        ...


@dataclass(eq=False, slots=True)
class Call:
    """Texts that travel together, and what the replica says of them."""

    sender: Sender
    parts: list[Attempt]
    sent_s: float
    missing: int
    left: object = None  # what the sender's policy noted
    replica: Replica | None = None
    ended: bool = False  # replied to, or cancelled
    arrived_s: float = 0.0
    started_s: float | None = None
    queue_ms: float = 0.0
    inference_ms: float = 0.0
    state: ReplicaState | None = None

    @property
    def tokens(self) -> int:
        """Of all its texts."""
        return sum([part.request.tokens for part in self.parts])


@dataclass(frozen=True, slots=True)
class _Text:
    part: Attempt
    call: Call


@dataclass(eq=False, slots=True)
class Replica:
    """One engine. Its batches take a thread for what `takes` says, times log-normal noise."""

    name: str
    simulation: Simulation
    machine: Machine
    profile: Profile  # for its batches' tokens
    takes: Fit  # what they take
    promised: Profile  # what its pace is told against
    rng: random.Random
    ready_s: float = 0.0
    calls: int = 0  # on their way here or back, or here; senders count
    computed: Callable[[SimRequest], None] | None = None
    _queue: list[_Text] = field(default_factory=list)
    _running: int = 0  # batches
    _pace: float = 1.0
    _sigma: float = field(init=False)

    def __post_init__(self) -> None:
        self._sigma = math.log(self.takes.spread) / P95
        if self.ready_s:
            self.simulation.at(self.ready_s, Replica._start, self)

    @property
    def queued_tokens(self) -> int:
        """Of texts that wait for a batch."""
        return sum([text.part.request.tokens for text in self._queue])

    def accept(self, call: Call) -> None:
        """A call is at the door: it takes some processor time before its texts are in the queue."""
        self.simulation.compute(self.machine.replica_call_ms / 1000, self._enqueue, call)

    def _enqueue(self, call: Call) -> None:
        if call.ended:
            return
        call.arrived_s = self.simulation.now_s
        self._queue += [_Text(part, call) for part in call.parts]
        self._start()

    def _start(self) -> None:
        if self.simulation.now_s >= self.ready_s:
            self._reply(self._next())

    def _next(self) -> list[Call]:
        """Run the next batch, where a stream is free; returns the calls of which nothing was left to compute."""
        if self._running == self.machine.streams:
            return []
        finished = self._drop_unwanted()
        if self._queue:
            self._running += 1
            lengths = [text.part.request.tokens for text in self._queue]
            positions = next_batch(lengths, self.profile.batch_tokens)
            batch = [self._queue[i] for i in positions]
            taken = set(positions)
            self._queue = [text for i, text in enumerate(self._queue) if i not in taken]
            self._run(batch, len(batch) * lengths[positions[-1]])
        return finished

    def _drop_unwanted(self) -> list[Call]:
        """Texts of cancelled calls, and late ones; returns the calls that these were the last of."""
        now_s, kept, finished = self.simulation.now_s, [], []
        for text in self._queue:
            if text.call.ended:
                continue
            if now_s < text.part.deadline_s:
                kept.append(text)
            elif self._is_last(text.call):
                finished.append(text.call)
        self._queue = kept
        return finished

    def _run(self, batch: list[_Text], padded_tokens: int) -> None:
        now_s = self.simulation.now_s
        for text in batch:
            if text.call.started_s is None:
                text.call.started_s = now_s
        work_ms = self.takes.ms(padded_tokens)
        if self._sigma:
            work_ms *= math.exp(self.rng.gauss(0.0, self._sigma))
        work_ms += self.machine.stalled_ms(work_ms, self.rng)
        self.simulation.compute(
            work_ms / 1000, self._ran, (batch, padded_tokens, now_s), engine=True
        )

    def _ran(self, ran: tuple[list[_Text], int, float]) -> None:
        """A batch is done: its calls reply once the next batch is under way."""
        batch, padded_tokens, started_s = ran
        self._running -= 1
        took_ms = (self.simulation.now_s - started_s) * 1000
        self._pace = took_ms / self.promised.fitted_ms(padded_tokens)
        if self.computed is not None:
            for text in batch:
                self.computed(text.part.request)
        finished = [text.call for text in batch if self._is_last(text.call)]
        self._reply(finished + self._next())

    @staticmethod
    def _is_last(call: Call) -> bool:
        call.missing -= 1
        return call.missing == 0 and not call.ended

    def _reply(self, calls: list[Call]) -> None:
        if not calls:
            return
        state = ReplicaState(replica=self.name, queued_tokens=self.queued_tokens, pace=self._pace)
        now_s = self.simulation.now_s
        for call in calls:
            started_s = now_s if call.started_s is None else call.started_s
            call.queue_ms = (started_s - call.arrived_s) * 1000
            call.inference_ms = (now_s - started_s) * 1000
            call.state = state
            call.sender.reply(call)
