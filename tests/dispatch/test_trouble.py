"""Lanes in trouble: replicas that die or fail, queues that are full. Nobody is forgotten."""

import asyncio
import time

import numpy as np
import pytest

from serve_app import dispatch
from serve_app.calls import Reply
from serve_app.dispatch import Lane
from serve_app.errors import BadRequest, InternalError, NotAdmitted, ReplicaDied, ServeAppError
from serve_app.parts import Embedded
from serve_app.policy.replica_state import ReplicaState
from tests.held_calls import (
    DIMS,
    HeldTransport,
    embed,
    fill,
    settle,
    start,
    texts_of,
    vectors_of,
)


def test_a_call_is_sent_again_when_its_replica_dies(lane: Lane, transport: HeldTransport) -> None:
    """The same texts go to another replica; the client notices nothing."""

    async def scenario() -> None:
        task = await start(lane, texts_of(3, 4))
        await transport.fail(0, ReplicaDied("gone"))
        assert transport.lengths(1) == [3, 4]
        await transport.answer(1)
        np.testing.assert_array_equal((await task).vectors, vectors_of(texts_of(3, 4)))

    asyncio.run(scenario())


def test_a_call_is_sent_again_only_once(lane: Lane, transport: HeldTransport) -> None:
    """A call that kills two replicas is not tried on a third; all its requests hear of it."""

    async def scenario() -> None:
        first = await start(lane, texts_of(3))
        await transport.fail(0, ReplicaDied("gone"))
        await transport.fail(1, ReplicaDied("gone too"))
        with pytest.raises(ReplicaDied, match="gone too"):
            await first
        assert len(transport.calls) == 2
        assert lane.load.inflight_tokens == 0

    asyncio.run(scenario())


def test_a_death_forgets_the_replicas(lane: Lane, transport: HeldTransport) -> None:
    """After a death the lane counts on one replica until others show themselves."""

    async def scenario() -> None:
        for name in ("r1", "r2"):
            state = ReplicaState(replica=name, queued_tokens=0)
            lane.load.saw(state, now_s=time.monotonic())
        await start(lane, texts_of(3))
        await transport.fail(0, ReplicaDied("gone"))
        assert lane.load.replicas(now_s=time.monotonic()) == []
        await transport.answer(1, replica="r2")
        assert [r.replica for r in lane.load.replicas(now_s=time.monotonic())] == ["r2"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("raised", "heard"),
    [
        (BadRequest("your fault"), BadRequest),
        (InternalError("ours"), InternalError),
        (RuntimeError("a secret path /etc"), InternalError),
        (TimeoutError("not the deadline"), InternalError),
    ],
)
def test_other_failures_are_not_tried_again(
    lane: Lane, transport: HeldTransport, raised: Exception, heard: type[ServeAppError]
) -> None:
    """Our own errors pass as they are, alien ones become a 500 that gives nothing away."""

    async def scenario() -> None:
        tasks = [await start(lane, texts_of(3))]
        await transport.fail(0, raised)
        with pytest.raises(heard) as error:
            await tasks[0]
        assert type(error.value) is heard
        assert "secret" not in error.value.message
        assert len(transport.calls) == 1
        assert lane.load.inflight_tokens == 0

    asyncio.run(scenario())


def test_a_failed_call_fails_its_own_requests_only(lane: Lane, transport: HeldTransport) -> None:
    """Requests in other calls and later ones are served."""

    async def scenario() -> None:
        tasks = [await start(lane, texts_of(n)) for n in (1, 2, 3, 4)]
        await transport.fail(0, RuntimeError("broken"))
        assert transport.lengths(2) == [3, 4]
        await transport.answer(1)
        await transport.answer(2)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(o) for o in outcomes] == [InternalError, Embedded, Embedded, Embedded]

    asyncio.run(scenario())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "vectors", [b"\0" * 3, b"\0" * 4 * (DIMS - 1), b"\0" * 4 * DIMS], ids=["torn", "dims", "rows"]
)
def test_a_reply_of_the_wrong_size_is_a_failure(
    lane: Lane, transport: HeldTransport, vectors: bytes
) -> None:
    """Bytes that are not the promised vectors are an error for the request, never silence."""

    async def scenario() -> None:
        task = await start(lane, texts_of(3, 4))
        state = ReplicaState(replica="r1", queued_tokens=0)
        transport.calls[0][1].set_result(Reply(vectors, 0.0, 0.0, state))
        await settle()
        assert task.done()
        with pytest.raises(InternalError):
            await task

    asyncio.run(scenario())


def test_a_full_queue_turns_requests_away(
    lane: Lane, transport: HeldTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit a request is refused at once, with a time to retry, and holds no tokens."""
    monkeypatch.setattr(dispatch, "PARTS_QUEUED_AT_MOST", 1)

    async def scenario() -> None:
        await fill(lane)
        await start(lane, texts_of(3))
        before = lane.load.inflight_tokens
        with pytest.raises(NotAdmitted) as refused:
            await embed(lane, texts_of(4))
        assert refused.value.retry_after_s
        assert lane.load.inflight_tokens == before
        for position in range(3):
            await transport.answer(position)

    asyncio.run(scenario())
