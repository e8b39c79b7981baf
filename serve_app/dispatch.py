"""The router's side of a variant: texts gather while calls are in flight; one call carries many.

A handle call costs about 2 CPU-ms whatever it carries, so while a variant's replicas are busy its
texts wait here, and the next call takes what gathered. Two calls a replica are kept in flight: one in
the engine, one at its door.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serve_app.engines.base import TokenIds, Vectors
from serve_app.errors import (
    DeadlineExceeded,
    InternalError,
    NotAdmitted,
    ReplicaDied,
    ServeAppError,
)
from serve_app.manifest import Manifest, Profile
from serve_app.policy.batching import take_tokens
from serve_app.policy.load import VariantLoad
from serve_app.replica import Call, Reply

log = logging.getLogger(__name__)

CALLS_PER_REPLICA = 2
BATCHES_PER_CALL = 2
PARTS_QUEUED_AT_MOST = 10_000  # then new requests are turned away


class Transport(Protocol):
    """Carries calls to the replicas of one variant. Real: a Ray handle. Fake: a `Replica` here."""

    async def __call__(self, call: Call) -> Reply:
        """Run a call on some replica.

        Raises:
            ReplicaDied: the replica is gone, and another may do it.
            ServeAppError: anything else went wrong.
        """
        ...


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of one request, float32 [texts, dims], and where the time of its last part went."""

    vectors: Vectors
    queue_ms: float
    inference_ms: float


@dataclass(eq=False, slots=True)
class _Part:
    """Texts of one request that travel in one call."""

    texts: list[TokenIds]
    tokens: int
    submitted_s: float
    deadline_s: float | None
    result: asyncio.Future[Embedded]

    def is_wanted(self, now_s: float) -> bool:
        """Whether a client still waits, and would be in time."""
        in_time = self.deadline_s is None or now_s < self.deadline_s
        return in_time and not self.result.done()


class Lane:
    """Everything one router sends to one variant. Use from one event loop."""

    def __init__(self, manifest: Manifest, transport: Transport, *, load: VariantLoad) -> None:
        self.load = load
        self._transport = transport
        self._dims = manifest.checkpoint.dims
        self._promised = manifest.profile
        self._queue: deque[_Part] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    def profile(self, *, now_s: float) -> Profile:
        """What the variant costs where it runs now; see `VariantLoad.profile`."""
        return self.load.profile(self._promised, now_s=now_s)

    @property
    def _call_tokens(self) -> int:
        """As many as the replicas' batches want, which is theirs to measure."""
        return BATCHES_PER_CALL * self.profile(now_s=time.monotonic()).batch_tokens

    async def embed(self, texts: list[TokenIds], *, deadline_s: float | None) -> Embedded:
        """Embed a request's texts.

        Args:
            texts: one at least, each within the model's limit.
            deadline_s: `time.monotonic()` when the answer loses its worth, or None.

        Raises:
            DeadlineExceeded: the deadline passed first; what had not left is dropped.
            NotAdmitted: too many texts wait here already.
            ReplicaDied: the replica died, and so did the second one tried.
        """
        if len(self._queue) >= PARTS_QUEUED_AT_MOST:
            raise NotAdmitted("the router's queue is full", param=None, retry_after_s=1.0)
        tokens = sum(map(len, texts))
        with self.load.hold(tokens):
            parts = self._split(texts, deadline_s=deadline_s)
            self._queue.extend(parts)
            self._pump()
            try:
                async with asyncio.timeout_at(_loop_time(deadline_s)):
                    done = await asyncio.gather(*(part.result for part in parts))
            except TimeoutError as error:
                message = "the budget passed while the request was queued or running"
                raise DeadlineExceeded(message) from error
            finally:
                for part in parts:
                    part.result.cancel()
        last = max(done, key=lambda part: part.queue_ms + part.inference_ms)
        return Embedded(
            np.concatenate([part.vectors for part in done]), last.queue_ms, last.inference_ms
        )

    def _split(self, texts: list[TokenIds], *, deadline_s: float | None) -> list[_Part]:
        """Cut a request into parts of at most one call each."""
        loop, now_s = asyncio.get_running_loop(), time.monotonic()
        lengths = list(map(len, texts))
        parts, start, call_tokens = [], 0, self._call_tokens
        while start < len(texts):
            count = take_tokens(lengths[start:], call_tokens)
            parts.append(
                _Part(
                    texts=texts[start : start + count],
                    tokens=sum(lengths[start : start + count]),
                    submitted_s=now_s,
                    deadline_s=deadline_s,
                    result=loop.create_future(),
                )
            )
            start += count
        return parts

    def _pump(self) -> None:
        """Send what gathered while calls are free."""
        replicas = max(1, len(self.load.replicas(now_s=time.monotonic())))
        while self._queue and len(self._calls) < CALLS_PER_REPLICA * replicas:
            parts = self._take()
            if parts:
                task = asyncio.create_task(self._send(parts))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)
                task.add_done_callback(lambda _: self._pump())

    def _take(self) -> list[_Part]:
        """The oldest parts that fit one call, without those nobody waits for."""
        parts: list[_Part] = []
        room = self._call_tokens
        while self._queue and (not parts or self._queue[0].tokens <= room):
            part = self._queue.popleft()
            if not part.result.done():
                parts.append(part)
                room -= part.tokens
        return parts

    async def _send(self, parts: list[_Part]) -> None:
        """One call, once more if its replica dies; each part gets its rows or the error."""
        sent_s = time.monotonic()
        call = Call.of([ids for part in parts for ids in part.texts])
        try:
            reply = await self._call_with_retry(call, parts)
            rows = np.frombuffer(reply.vectors, dtype=np.float32).reshape(call.count, self._dims)
        except asyncio.CancelledError:
            self._fail(parts, ReplicaDied("the call was cancelled"))
            raise
        except Exception as error:  # every waiting request must hear of it
            self._fail(parts, error)
            return
        now_s = time.monotonic()
        hop_ms = (now_s - sent_s) * 1000 - reply.queue_ms - reply.inference_ms
        self.load.saw(reply.state, hop_ms=hop_ms, now_s=now_s)
        start = 0
        for part in parts:
            end = start + len(part.texts)
            if not part.result.done():
                queue_ms = (sent_s - part.submitted_s) * 1000 + reply.queue_ms
                part.result.set_result(Embedded(rows[start:end], queue_ms, reply.inference_ms))
            start = end

    @staticmethod
    def _fail(parts: list[_Part], error: Exception) -> None:
        if not isinstance(error, ServeAppError):
            log.error("a call failed", exc_info=error)
            error = InternalError("the variant's engine failed; the server's log has the details")
        for part in parts:
            if not part.result.done():
                part.result.set_exception(error)

    async def _call_with_retry(self, call: Call, parts: list[_Part]) -> Reply:
        try:
            return await self._transport(call)
        except ReplicaDied:
            self.load.lost()
            now_s = time.monotonic()
            if not any(part.is_wanted(now_s) for part in parts):
                raise
            return await self._transport(call)


def _loop_time(deadline_s: float | None) -> float | None:
    """A `time.monotonic()` deadline on the running loop's clock, which may be another."""
    if deadline_s is None:
        return None
    return asyncio.get_running_loop().time() + deadline_s - time.monotonic()
