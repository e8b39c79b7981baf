"""The router's side of the variants: texts wait for their turns while calls are in flight; one call carries many.

A call costs some CPU whatever it carries (`docs/fast-path.md`), and what has left cannot be overtaken: so while all
cores are busy texts wait here, and when one is free, the lane whose text has the first turn sends its next call
(`policy/turns.py`, `policy/batching.may_leave`). A call is one batch, of texts of like length around the first in
line: a reply comes with the last of its texts, so a short text must not travel with long ones.

Work that nobody waits for is not sent, nor is what cannot be in time any more; a call that carries nothing else is
cancelled.

Every queue has a bound: requests in a router (`app.py`), parts here (`PARTS_QUEUED_AT_MOST`), calls on
their way (a few for each replica), calls at a replica (`replica.py`). Admission refuses long before any is met.
"""

from __future__ import annotations

import asyncio
import math
import time
from bisect import insort
from contextlib import ExitStack
from functools import partial
from operator import attrgetter
from typing import NamedTuple, Protocol

import numpy as np

from serve_app.calls import Call, Reply
from serve_app.engines.base import TokenIds
from serve_app.errors import DeadlineExceeded, NotAdmitted, ReplicaDied
from serve_app.manifest import Manifest
from serve_app.parts import LATE, Embedded, Flight, Part, fail_all, hand_out
from serve_app.policy.batching import next_batch, take_tokens
from serve_app.policy.brain import Brain

LOOKED_AT = 256  # parts, the first in line first, among which a call looks for its like
PARTS_QUEUED_AT_MOST = 10_000  # then new requests are turned away


class Transport(Protocol):
    """Carries calls to the replicas of one variant: connections of our own, a Ray handle, or a fake."""

    async def __call__(self, call: Call) -> Reply:
        """Run a call on some replica.

        Raises:
            ReplicaDied: the replica is gone, and another may do it.
            ServeAppError: anything else went wrong.
        """
        ...


_turn_s = attrgetter("turn_s")


class Counted(NamedTuple):
    """A call as the brain knows it: how many batches ran with it when it left, and what gives it back."""

    busy: int
    held: ExitStack


class Pump:
    """Has the lanes of one router send, each in its turn."""

    def __init__(self) -> None:
        self._lanes: list[Lane] = []

    def join(self, lane: Lane) -> None:
        self._lanes.append(lane)

    def __call__(self) -> None:
        """Send while calls are free: always what has the first turn of all that may leave."""
        now_s = time.monotonic()
        while ready := [lane for lane in self._lanes if lane.may_send(now_s)]:
            min(ready, key=Lane.next_turn_s).send_next(now_s)


class Lane:
    """Everything one router sends to one variant. Use from one event loop."""

    def __init__(
        self, manifest: Manifest, transport: Transport, *, brain: Brain, pump: Pump | None = None
    ) -> None:
        self.load = brain.load(manifest.variant)
        self._brain = brain
        self._variant = manifest.variant
        self._transport = transport
        self._dims = manifest.checkpoint.dims
        self._queue: list[Part] = []  # by turn
        self._calls: set[asyncio.Task[None]] = set()
        self._pump = pump or Pump()
        self._pump.join(self)

    @property
    def _call_tokens(self) -> int:
        """As many as the replicas' batches want, which is theirs to measure."""
        return self.load.profile.batch_tokens

    async def reach(self, texts: list[TokenIds]) -> None:
        """Wait until a replica answers. What that took tells nothing of later calls."""
        await self._transport(Call.of(texts))

    async def embed(
        self, texts: list[TokenIds], *, deadline_s: float | None, place_ms: float = 0.0
    ) -> Embedded:
        """Embed a request's texts; whoever asks holds their tokens as in flight.

        Args:
            texts: one at least, each within the model's limit.
            deadline_s: `time.monotonic()` when the answer loses its worth, or None.
            place_ms: in line, as the decision has it.

        Raises:
            DeadlineExceeded: the deadline passed first; what had not left is dropped.
            NotAdmitted: too many texts wait here already.
            ReplicaDied: the replica died, and so did the second one tried.
        """
        if len(self._queue) >= PARTS_QUEUED_AT_MOST:
            raise NotAdmitted("the router's queue is full", param=None, retry_after_s=1.0)
        parts = self._split(
            texts, deadline_s=math.inf if deadline_s is None else deadline_s, place_ms=place_ms
        )
        for part in parts:
            insort(self._queue, part, key=_turn_s)
        self._pump()
        try:
            async with asyncio.timeout_at(_loop_time(deadline_s)):
                if len(parts) == 1:
                    return await parts[0].result
                done = await asyncio.gather(*(part.result for part in parts))
        except TimeoutError as error:
            raise DeadlineExceeded(LATE) from error
        finally:
            for part in parts:
                part.leave()
        last = max(done, key=lambda part: part.queue_ms + part.inference_ms)
        vectors = np.concatenate([part.vectors for part in done])
        in_order = np.empty_like(vectors)
        in_order[_by_length(texts)] = vectors
        return Embedded(in_order, last.queue_ms, last.inference_ms)

    def _split(
        self, texts: list[TokenIds], *, deadline_s: float, place_ms: float = 0.0
    ) -> list[Part]:
        """Cut a request into parts of at most one call each, texts of like length together."""
        loop, now_s = asyncio.get_running_loop(), time.monotonic()
        if sum(map(len, texts)) > self._call_tokens:
            texts = [texts[i] for i in _by_length(texts)]
        lengths = list(map(len, texts))
        parts, start, call_tokens = [], 0, self._call_tokens
        while start < len(texts):
            count = take_tokens(lengths[start:], call_tokens)
            tokens = sum(lengths[start : start + count])
            parts.append(
                Part(
                    texts=texts[start : start + count],
                    tokens=tokens,
                    submitted_s=now_s,
                    deadline_s=deadline_s,
                    result=loop.create_future(),
                    waiting=self.load.wait_in_line(tokens, place_ms=place_ms, now_s=now_s),
                )
            )
            start += count
        return parts

    def may_send(self, now_s: float) -> bool:
        """Whether something waits here for which a call is free. What need not leave any more is dropped."""
        return self._waits(now_s) and self._brain.may_leave(self._variant, now_s=now_s)

    def _waits(self, now_s: float) -> bool:
        """Whether the first in line is worth sending, once those before it that are not were dropped."""
        queue = self._queue
        while queue and not self._is_worth_it(queue[0], now_s):
            queue.pop(0)
        return bool(queue)

    def next_turn_s(self) -> float:
        """The first in line; one waits at least."""
        return self._queue[0].turn_s

    def send_next(self, now_s: float) -> None:
        """One call."""
        if parts := self._take(now_s):
            self._launch(parts, now_s)

    def _is_worth_it(self, part: Part, now_s: float) -> bool:
        """Whether it shall be sent; what cannot make it any more waits for nothing but its deadline."""
        left_ms = (part.deadline_s - now_s) * 1000
        if part.claim(now_s) and self.load.can_make_it(part.tokens, left_ms=left_ms):
            return True
        part.waiting.leave()
        return False

    def _take(self, now_s: float) -> list[Part]:
        """One call: the first part in line, and single texts of its length; none that nobody waits for."""
        if not self._waits(now_s):
            return []
        queue = self._queue
        if len(queue) == 1 or len(queue[0].texts) > 1:
            parts = [queue.pop(0)]
        else:
            near = [part for part in queue[:LOOKED_AT] if len(part.texts) == 1]
            taken = next_batch([part.tokens for part in near], self._call_tokens)
            parts = [near[i] for i in taken]
            chosen = set(map(id, parts))
            self._queue = [part for part in queue if id(part) not in chosen]
            parts = [part for part in parts if self._is_worth_it(part, now_s)]
        for part in parts:
            part.waiting.leave()
        return parts

    def _launch(self, parts: list[Part], now_s: float) -> None:
        """Send parts; the call counts at once, as the next lane to send must know."""
        counted = self._count(parts, now_s)
        task = asyncio.create_task(self._send(parts, counted))
        flight = Flight(parts, task)
        for part in parts:
            part.flight = flight
        self._calls.add(task)
        task.add_done_callback(partial(self._landed, counted))

    def _landed(self, counted: Counted, task: asyncio.Task[None]) -> None:
        counted.held.close()  # where the task was cancelled before it began
        self._calls.discard(task)
        self._pump()

    def _count(self, parts: list[Part], now_s: float) -> Counted:
        busy, held = self._brain.busy_with(self._variant, now_s=now_s), ExitStack()
        held.enter_context(self.load.call(sum(part.tokens for part in parts), now_s=now_s))
        return Counted(busy, held)

    async def _send(self, parts: list[Part], counted: Counted) -> None:
        """One call, once more if its replica dies; each part gets its rows or the error."""
        try:
            try:
                await self._carry(parts, counted)
            except ReplicaDied:
                self.load.lost()
                now_s = time.monotonic()
                again = [part for part in parts if part.claim(now_s)]
                if again:
                    await self._carry(again, self._count(again, now_s))
        except asyncio.CancelledError:
            fail_all(parts, ReplicaDied("the call was cancelled"))
            raise
        except Exception as error:  # every waiting request must hear of it
            fail_all(parts, error)

    async def _carry(self, parts: list[Part], counted: Counted) -> None:
        """One call to a replica and back, and what its reply tells."""
        with counted.held:
            sent_s = time.monotonic()
            left_ms: list[float] = []
            for part in parts:
                left_ms += [(part.deadline_s - sent_s) * 1000] * len(part.texts)
            call = Call.of([ids for part in parts for ids in part.texts], left_ms)
            reply = await self._transport(call)
        rows = np.frombuffer(reply.vectors, dtype=np.float32).reshape(call.count, self._dims)
        now_s = time.monotonic()
        hop_ms = (now_s - sent_s) * 1000 - reply.queue_ms - reply.inference_ms
        self._brain.saw(self._variant, reply.state, busy=counted.busy, hop_ms=hop_ms, now_s=now_s)
        hand_out(parts, rows, reply, sent_s=sent_s)


def _by_length(texts: list[TokenIds]) -> list[int]:
    """Positions, shortest text first."""
    return sorted(range(len(texts)), key=lambda i: len(texts[i]))


def _loop_time(deadline_s: float | None) -> float | None:
    """A `time.monotonic()` deadline on the running loop's clock, which may be another."""
    if deadline_s is None:
        return None
    return asyncio.get_running_loop().time() + deadline_s - time.monotonic()
