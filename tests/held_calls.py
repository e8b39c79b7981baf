"""A lane whose calls end when the test says so, and what travels on it."""

import asyncio
from collections.abc import Sequence

import numpy as np

from serve_app.dispatch import CALLS_PER_REPLICA, Embedded, Lane
from serve_app.engines.base import TokenIds, Vectors
from serve_app.engines.fake_engine import FakeEngine
from serve_app.policy.load import ReplicaState
from serve_app.replica import Call, Reply

DIMS = 8
CALL_TOKENS = 128  # two of the artifact's batches


class HeldTransport:
    """Holds each call until the test answers it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Call, asyncio.Future[Reply]]] = []

    async def __call__(self, call: Call) -> Reply:
        answer = asyncio.get_running_loop().create_future()
        self.calls.append((call, answer))
        return await answer

    def lengths(self, position: int) -> list[int]:
        """Tokens of each text of a call."""
        return [len(ids) for ids in self.calls[position][0].texts()]

    async def answer(
        self,
        position: int,
        *,
        replica: str = "r1",
        queue_ms: float = 0.0,
        inference_ms: float = 0.0,
    ) -> None:
        """Answer a call as a replica would."""
        call, answer = self.calls[position]
        vectors = vectors_of(call.texts()).tobytes()
        answer.set_result(
            Reply(vectors, queue_ms, inference_ms, ReplicaState(replica=replica, queued_tokens=0))
        )
        await settle()

    async def fail(self, position: int, error: Exception) -> None:
        """Let a call end in an error."""
        self.calls[position][1].set_exception(error)
        await settle()


async def settle() -> None:
    """Let everything run that can run without an answer."""
    for _ in range(20):
        await asyncio.sleep(0)


def texts_of(*lengths: int) -> list[TokenIds]:
    """Texts of these lengths, each with token ids of its own."""
    return [np.arange(1000 * i, 1000 * i + n, dtype=np.int32) for i, n in enumerate(lengths, 1)]


def vectors_of(texts: Sequence[TokenIds]) -> Vectors:
    return FakeEngine(dims=DIMS).embed(texts)


async def start(
    lane: Lane, texts: list[TokenIds], deadline_s: float | None = None
) -> asyncio.Task[Embedded]:
    task = asyncio.create_task(lane.embed(texts, deadline_s=deadline_s))
    await settle()
    return task


async def fill(lane: Lane) -> list[asyncio.Task[Embedded]]:
    """Take all the calls that one replica may have in flight."""
    return [await start(lane, texts_of(2)) for _ in range(CALLS_PER_REPLICA)]
