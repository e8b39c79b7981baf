"""What travels on a lane: the parts of requests, and the calls that carry them.

A part ends in one of three ways: with its vectors, with an error, or because its request has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.calls import Reply
from serve_app.engines.base import TokenIds, Vectors
from serve_app.errors import DeadlineExceeded, InternalError, ServeAppError
from serve_app.policy.load import Waiting

log = logging.getLogger(__name__)

LATE = "the budget passed while the request was queued or running"


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of one request, float32 [texts, dims], and where the time of its last part went."""

    vectors: Vectors
    queue_ms: float
    inference_ms: float


@dataclass(eq=False, slots=True)
class Part:
    """Texts of one request that travel in one call."""

    texts: list[TokenIds]
    tokens: int
    submitted_s: float
    deadline_s: float  # inf without one
    result: asyncio.Future[Embedded]
    waiting: Waiting  # for its turn
    flight: Flight | None = None

    @property
    def turn_s(self) -> float:
        return self.waiting.turn_s

    def claim(self, now_s: float) -> bool:
        """Whether it shall be sent: a client still waits. One that is late hears of it."""
        if self.result.done():
            return False
        if now_s < self.deadline_s:
            return True
        self.fail(DeadlineExceeded(LATE))
        return False

    def fail(self, error: ServeAppError) -> None:
        if not self.result.done():
            self.result.set_exception(error)

    def leave(self) -> None:
        """Its request has ended; where that was before the part did, its call may be for nobody."""
        self.result.cancel()
        self.waiting.leave()
        if self.flight is not None and self.result.cancelled():
            self.flight.end_if_unwanted()


@dataclass(eq=False, slots=True)
class Flight:
    """A call on its way."""

    parts: Sequence[Part]
    task: asyncio.Task[None]

    def end_if_unwanted(self) -> None:
        """Cancel the call when nobody waits for any of its parts."""
        if all(part.result.done() for part in self.parts):
            self.task.cancel()


def hand_out(parts: Sequence[Part], rows: Vectors, reply: Reply, *, sent_s: float) -> None:
    """Each part its own rows; none where the replica dropped one of its texts as late."""
    dropped = set(reply.dropped)
    start = 0
    for part in parts:
        end = start + len(part.texts)
        if dropped and not dropped.isdisjoint(range(start, end)):
            part.fail(DeadlineExceeded(LATE))
        elif not part.result.done():
            queue_ms = (sent_s - part.submitted_s) * 1000 + reply.queue_ms
            part.result.set_result(Embedded(rows[start:end], queue_ms, reply.inference_ms))
        start = end


def fail_all(parts: Sequence[Part], error: Exception) -> None:
    """Tell all that still wait; what is not ours to say becomes a plain 500."""
    if not isinstance(error, ServeAppError):
        log.error("a call failed", exc_info=error)
        error = InternalError("the variant's engine failed; the server's log has the details")
    for part in parts:
        part.fail(error)
