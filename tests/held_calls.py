"""A lane whose calls end when the test says so, and what travels on it."""

import asyncio
from collections.abc import Sequence

import numpy as np

from serve_app.calls import Call, Reply
from serve_app.dispatch import Lane
from serve_app.engines.base import TokenIds, Vectors
from serve_app.engines.fake_engine import FakeEngine
from serve_app.manifest import Manifest
from serve_app.parts import Embedded
from serve_app.policy.batching import CALLS_EACH
from serve_app.policy.brain import Brain, Options, VariantFacts
from serve_app.policy.hint import Hint
from serve_app.policy.replica_state import ReplicaState

DIMS = 8
CALL_TOKENS = 64  # one of the artifact's batches


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
        dropped: tuple[int, ...] = (),
    ) -> None:
        """Answer a call as a replica would."""
        call, answer = self.calls[position]
        vectors = vectors_of(call.texts()).tobytes()
        state = ReplicaState(replica=replica, queued_tokens=0)
        answer.set_result(Reply(vectors, queue_ms, inference_ms, state, dropped))
        await settle()

    def is_cancelled(self, position: int) -> bool:
        """Whether the lane gave a call up."""
        return self.calls[position][1].cancelled()

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


def lane_of(
    manifest: Manifest, transport: HeldTransport, *, cores: float = 4, streams: int = 1
) -> Lane:
    """A lane with a brain that knows its variant only."""
    facts = VariantFacts(
        variant=manifest.variant,
        fidelity=manifest.fidelity.p1,
        profile=manifest.profile,
        streams=streams,
    )
    options = Options(default=Hint(budget_ms=1000.0), cores=cores)
    brain = Brain([facts], options=options, draw=lambda: 0.0)
    return Lane(manifest, transport, brain=brain)


async def embed(lane: Lane, texts: list[TokenIds], deadline_s: float | None = None) -> Embedded:
    """As the fleet does it: tokens are in flight for as long as the lane is at it."""
    with lane.load.hold(sum(map(len, texts))):
        return await lane.embed(texts, deadline_s=deadline_s)


async def start(
    lane: Lane, texts: list[TokenIds], deadline_s: float | None = None
) -> asyncio.Task[Embedded]:
    task = asyncio.create_task(embed(lane, texts, deadline_s))
    await settle()
    return task


def passed(_: float | None) -> float:
    """In `dispatch._loop_time`'s place: the deadline passes once the call has left."""
    return asyncio.get_running_loop().time()


async def fill(lane: Lane) -> list[asyncio.Task[Embedded]]:
    """Take all the calls that one replica may have in flight."""
    return [await start(lane, texts_of(2)) for _ in range(CALLS_EACH)]
