"""Lanes in trouble: deadlines, clients that leave, replicas that die or fail. Nobody is forgotten."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from serve_app import dispatch
from serve_app.dispatch import Embedded, Lane
from serve_app.errors import (
    BadRequest,
    DeadlineExceeded,
    InternalError,
    NotAdmitted,
    ReplicaDied,
    ServeAppError,
)
from serve_app.manifest import Manifest, read_manifest
from serve_app.policy.load import ReplicaState, VariantLoad
from serve_app.replica import Reply
from tests.held_calls import (
    DIMS,
    HeldTransport,
    fill,
    settle,
    start,
    texts_of,
    vectors_of,
)


@pytest.fixture
def transport() -> HeldTransport:
    return HeldTransport()


@pytest.fixture
def manifest(artifacts: Path) -> Manifest:
    return read_manifest(artifacts / "fake-int8")


@pytest.fixture
def lane(manifest: Manifest, transport: HeldTransport) -> Lane:
    return Lane(manifest, transport, load=VariantLoad())


def test_a_deadline_that_passes_is_an_error_and_frees_the_tokens(
    lane: Lane, transport: HeldTransport
) -> None:
    """The request ends with 504; its call may still run, and its late answer disturbs nobody."""

    async def scenario() -> None:
        task = await start(lane, texts_of(3), deadline_s=time.monotonic() - 1)
        with pytest.raises(DeadlineExceeded):
            await task
        assert lane.load.inflight_tokens == 0
        await transport.answer(0)
        again = await start(lane, texts_of(4))
        await transport.answer(1)
        np.testing.assert_array_equal((await again).vectors, vectors_of(texts_of(4)))

    asyncio.run(scenario())


def test_a_deadline_in_the_future_does_not_disturb(lane: Lane, transport: HeldTransport) -> None:
    """An answer within the deadline is an answer."""

    async def scenario() -> None:
        task = await start(lane, texts_of(3), deadline_s=time.monotonic() + 3600)
        await transport.answer(0)
        assert (await task).vectors.shape == (1, DIMS)

    asyncio.run(scenario())


def test_what_is_late_before_it_left_is_dropped(lane: Lane, transport: HeldTransport) -> None:
    """A request that died in the queue costs no call, and others pass over it."""

    async def scenario() -> None:
        await fill(lane)
        late = await start(lane, texts_of(3), deadline_s=time.monotonic() - 1)
        with pytest.raises(DeadlineExceeded):
            await late
        gone = await start(lane, texts_of(4))
        gone.cancel()
        waits = await start(lane, texts_of(5))
        await transport.answer(0)
        assert transport.lengths(2) == [5]
        await transport.answer(1)
        await transport.answer(2)
        await waits
        assert lane.load.inflight_tokens == 0
        assert len(transport.calls) == 3

    asyncio.run(scenario())


def test_a_cancelled_request_frees_its_tokens(lane: Lane, transport: HeldTransport) -> None:
    """A client that leaves takes its tokens out of the forecast, call in flight or not."""

    async def scenario() -> None:
        task = await start(lane, texts_of(3))
        task.cancel()
        await settle()
        assert task.cancelled()
        assert lane.load.inflight_tokens == 0
        await transport.answer(0)

    asyncio.run(scenario())


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


def test_a_call_that_is_late_already_is_not_sent_again(
    lane: Lane, transport: HeldTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every deadline has passed, a second try would be work for nobody."""

    async def scenario() -> None:
        task = await start(lane, texts_of(3), deadline_s=time.monotonic() + 3600)
        later_s = time.monotonic() + 7200
        with monkeypatch.context() as patch:
            patch.setattr(dispatch.time, "monotonic", lambda: later_s)
            transport.calls[0][1].set_exception(ReplicaDied("gone"))
            with pytest.raises((ReplicaDied, DeadlineExceeded)):
                await task
        assert len(transport.calls) == 1

    asyncio.run(scenario())


def test_a_death_forgets_the_replicas(lane: Lane, transport: HeldTransport) -> None:
    """After a death the lane counts on one replica until others show themselves."""

    async def scenario() -> None:
        lane.load.saw(ReplicaState(replica="r1", queued_tokens=0), hop_ms=1, now_s=time.monotonic())
        lane.load.saw(ReplicaState(replica="r2", queued_tokens=0), hop_ms=1, now_s=time.monotonic())
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
            await lane.embed(texts_of(4), deadline_s=None)
        assert refused.value.retry_after_s
        assert lane.load.inflight_tokens == before
        for position in range(3):
            await transport.answer(position)

    asyncio.run(scenario())
