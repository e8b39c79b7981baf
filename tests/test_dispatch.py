"""The router's side of a variant: texts travel together, in few calls, and nobody is forgotten."""

import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from serve_app import dispatch
from serve_app.dispatch import CALLS_PER_REPLICA, Embedded, Lane
from serve_app.engines.base import TokenIds, Vectors
from serve_app.engines.fake_engine import FakeEngine
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
        vectors = _expected(call.texts()).tobytes()
        answer.set_result(
            Reply(vectors, queue_ms, inference_ms, ReplicaState(replica=replica, queued_tokens=0))
        )
        await _settle()

    async def fail(self, position: int, error: Exception) -> None:
        """Let a call end in an error."""
        self.calls[position][1].set_exception(error)
        await _settle()


async def _settle() -> None:
    """Let everything run that can run without an answer."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def transport() -> HeldTransport:
    return HeldTransport()


@pytest.fixture
def manifest(artifacts: Path) -> Manifest:
    return read_manifest(artifacts / "fake-int8")


@pytest.fixture
def lane(manifest: Manifest, transport: HeldTransport) -> Lane:
    return Lane(manifest, transport, load=VariantLoad())


def _ids(*lengths: int) -> list[TokenIds]:
    """Texts of these lengths, each with token ids of its own."""
    return [np.arange(1000 * i, 1000 * i + n, dtype=np.int32) for i, n in enumerate(lengths, 1)]


def _expected(texts: Sequence[TokenIds]) -> Vectors:
    return FakeEngine(dims=DIMS).embed(texts)


async def _start(
    lane: Lane, texts: list[TokenIds], deadline_s: float | None = None
) -> asyncio.Task[Embedded]:
    task = asyncio.create_task(lane.embed(texts, deadline_s=deadline_s))
    await _settle()
    return task


async def _fill(lane: Lane) -> list[asyncio.Task[Embedded]]:
    """Take all the calls that one replica may have in flight."""
    return [await _start(lane, _ids(2)) for _ in range(CALLS_PER_REPLICA)]


def test_a_free_lane_sends_at_once(lane: Lane, transport: HeldTransport) -> None:
    """Nothing waits for a call to fill; the vectors are the request's own."""

    async def scenario() -> None:
        task = await _start(lane, _ids(3, 5))
        assert transport.lengths(0) == [3, 5]
        await transport.answer(0, queue_ms=4.0, inference_ms=7.0)
        done = await task
        np.testing.assert_array_equal(done.vectors, _expected(_ids(3, 5)))
        assert done.queue_ms >= 4.0
        assert done.inference_ms == 7.0

    asyncio.run(scenario())


def test_texts_that_arrive_meanwhile_travel_in_one_call(
    lane: Lane, transport: HeldTransport
) -> None:
    """While the calls are taken, requests gather; the next call carries all, each gets its rows."""

    async def scenario() -> None:
        await _fill(lane)
        late = [await _start(lane, texts) for texts in (_ids(3), _ids(4, 5), _ids(6))]
        assert len(transport.calls) == CALLS_PER_REPLICA
        await transport.answer(0)
        assert transport.lengths(CALLS_PER_REPLICA) == [3, 4, 5, 6]
        assert len(transport.calls) == CALLS_PER_REPLICA + 1
        await transport.answer(CALLS_PER_REPLICA)
        for task, texts in zip(late, (_ids(3), _ids(4, 5), _ids(6)), strict=True):
            np.testing.assert_array_equal((await task).vectors, _expected(texts))
        await transport.answer(1)

    asyncio.run(scenario())


def test_a_call_carries_no_more_than_two_batches(lane: Lane, transport: HeldTransport) -> None:
    """What exceeds a call's tokens waits for the next one, in order of arrival."""

    async def scenario() -> None:
        await _fill(lane)
        late = [await _start(lane, _ids(64)) for _ in range(3)]
        await transport.answer(0)
        await transport.answer(1)
        assert transport.lengths(2) == [64, 64]
        assert transport.lengths(3) == [64]
        await transport.answer(2)
        assert [task.done() for task in late] == [True, True, False]
        await transport.answer(3)

    asyncio.run(scenario())


def test_calls_in_flight_are_bounded_by_the_replicas_seen(
    lane: Lane, transport: HeldTransport
) -> None:
    """Two calls a replica: a second replica that shows itself takes two more."""

    async def scenario() -> None:
        tasks = [await _start(lane, _ids(CALL_TOKENS)) for _ in range(9)]
        assert len(transport.calls) == CALLS_PER_REPLICA
        await transport.answer(0, replica="r1")
        assert len(transport.calls) - 1 == CALLS_PER_REPLICA
        await transport.answer(1, replica="r2")
        assert len(transport.calls) - 2 == 2 * CALLS_PER_REPLICA
        for position in range(2, 9):
            await transport.answer(position)
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_a_big_request_is_split_and_put_together(lane: Lane, transport: HeldTransport) -> None:
    """More than a call holds goes in several, and comes back as one, in order."""
    texts = _ids(*[10] * 30)

    async def scenario() -> None:
        task = await _start(lane, texts)
        assert [len(transport.lengths(i)) for i in range(2)] == [12, 12]
        await transport.answer(1)
        await transport.answer(0)
        assert len(transport.lengths(2)) == 6
        await transport.answer(2)
        np.testing.assert_array_equal((await task).vectors, _expected(texts))

    asyncio.run(scenario())


def test_a_text_longer_than_a_call_travels_alone(lane: Lane, transport: HeldTransport) -> None:
    """There is no text that no call can carry."""

    async def scenario() -> None:
        task = await _start(lane, _ids(CALL_TOKENS + 1, 1))
        assert [transport.lengths(i) for i in range(2)] == [[CALL_TOKENS + 1], [1]]
        await transport.answer(0)
        await transport.answer(1)
        assert (await task).vectors.shape == (2, DIMS)

    asyncio.run(scenario())


def test_phases_of_a_split_request_do_not_overlap(lane: Lane, transport: HeldTransport) -> None:
    """Queue and inference together never exceed the time that the request took."""

    async def scenario() -> None:
        started_s = time.monotonic()
        task = await _start(lane, _ids(CALL_TOKENS, CALL_TOKENS))
        await transport.answer(0, queue_ms=0, inference_ms=100_000)
        await transport.answer(1, queue_ms=100_000, inference_ms=5_000)
        done = await task
        assert done.inference_ms == 5_000
        took_ms = 105_000 + (time.monotonic() - started_s) * 1000
        assert done.queue_ms + done.inference_ms <= took_ms

    asyncio.run(scenario())


def test_what_a_call_costs_on_top_is_learned(
    lane: Lane, transport: HeldTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hop is the call's time without the replica's queue and engine, and no wait in the lane."""
    clock = {"s": time.monotonic()}
    monkeypatch.setattr(dispatch.time, "monotonic", lambda: clock["s"])

    async def scenario() -> None:
        await _fill(lane)
        waits = await _start(lane, _ids(3))
        clock["s"] += 0.020
        await transport.answer(0, queue_ms=3, inference_ms=12)
        assert lane.load.hop_ms == pytest.approx(5)
        clock["s"] += 0.015
        await transport.answer(2, queue_ms=1, inference_ms=9)
        assert lane.load.hop_ms == pytest.approx(5)
        assert (await waits).queue_ms == pytest.approx(20 + 1)
        await transport.answer(1)

    asyncio.run(scenario())


def test_tokens_are_in_flight_until_the_answer(lane: Lane, transport: HeldTransport) -> None:
    """What waits here and what runs there counts, until its request is answered."""

    async def scenario() -> None:
        await _fill(lane)
        await _start(lane, _ids(3, 4))
        assert lane.load.inflight_tokens == 2 * CALLS_PER_REPLICA + 7
        await transport.answer(0)
        assert lane.load.inflight_tokens == 2 * (CALLS_PER_REPLICA - 1) + 7
        await transport.answer(1)
        await transport.answer(2)
        assert lane.load.inflight_tokens == 0

    asyncio.run(scenario())


def test_a_deadline_that_passes_is_an_error_and_frees_the_tokens(
    lane: Lane, transport: HeldTransport
) -> None:
    """The request ends with 504; its call may still run, and its late answer disturbs nobody."""

    async def scenario() -> None:
        task = await _start(lane, _ids(3), deadline_s=time.monotonic() - 1)
        with pytest.raises(DeadlineExceeded):
            await task
        assert lane.load.inflight_tokens == 0
        await transport.answer(0)
        again = await _start(lane, _ids(4))
        await transport.answer(1)
        np.testing.assert_array_equal((await again).vectors, _expected(_ids(4)))

    asyncio.run(scenario())


def test_a_deadline_in_the_future_does_not_disturb(lane: Lane, transport: HeldTransport) -> None:
    """An answer within the deadline is an answer."""

    async def scenario() -> None:
        task = await _start(lane, _ids(3), deadline_s=time.monotonic() + 3600)
        await transport.answer(0)
        assert (await task).vectors.shape == (1, DIMS)

    asyncio.run(scenario())


def test_what_is_late_before_it_left_is_dropped(lane: Lane, transport: HeldTransport) -> None:
    """A request that died in the queue costs no call, and others pass over it."""

    async def scenario() -> None:
        await _fill(lane)
        late = await _start(lane, _ids(3), deadline_s=time.monotonic() - 1)
        with pytest.raises(DeadlineExceeded):
            await late
        gone = await _start(lane, _ids(4))
        gone.cancel()
        waits = await _start(lane, _ids(5))
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
        task = await _start(lane, _ids(3))
        task.cancel()
        await _settle()
        assert task.cancelled()
        assert lane.load.inflight_tokens == 0
        await transport.answer(0)

    asyncio.run(scenario())


def test_a_call_is_sent_again_when_its_replica_dies(lane: Lane, transport: HeldTransport) -> None:
    """The same texts go to another replica; the client notices nothing."""

    async def scenario() -> None:
        task = await _start(lane, _ids(3, 4))
        await transport.fail(0, ReplicaDied("gone"))
        assert transport.lengths(1) == [3, 4]
        await transport.answer(1)
        np.testing.assert_array_equal((await task).vectors, _expected(_ids(3, 4)))

    asyncio.run(scenario())


def test_a_call_is_sent_again_only_once(lane: Lane, transport: HeldTransport) -> None:
    """A call that kills two replicas is not tried on a third; all its requests hear of it."""

    async def scenario() -> None:
        first = await _start(lane, _ids(3))
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
        task = await _start(lane, _ids(3), deadline_s=time.monotonic() + 3600)
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
        await _start(lane, _ids(3))
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
        tasks = [await _start(lane, _ids(3))]
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
        tasks = [await _start(lane, _ids(n)) for n in (1, 2, 3, 4)]
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
        task = await _start(lane, _ids(3, 4))
        state = ReplicaState(replica="r1", queued_tokens=0)
        transport.calls[0][1].set_result(Reply(vectors, 0.0, 0.0, state))
        await _settle()
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
        await _fill(lane)
        await _start(lane, _ids(3))
        before = lane.load.inflight_tokens
        with pytest.raises(NotAdmitted) as refused:
            await lane.embed(_ids(4), deadline_s=None)
        assert refused.value.retry_after_s
        assert lane.load.inflight_tokens == before
        for position in range(3):
            await transport.answer(position)

    asyncio.run(scenario())


def test_time_in_the_lanes_queue_counts_as_queue(
    lane: Lane, transport: HeldTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a request waits here is added to what it waits at the replica."""

    async def scenario() -> None:
        await _fill(lane)
        waits = await _start(lane, _ids(3))
        later_s = time.monotonic() + 2
        with monkeypatch.context() as patch:
            patch.setattr(dispatch.time, "monotonic", lambda: later_s)
            await transport.answer(0)
        await transport.answer(1)
        await transport.answer(2, queue_ms=1000, inference_ms=7)
        done = await waits
        assert done.queue_ms == pytest.approx(3000, abs=500)
        assert done.inference_ms == 7

    asyncio.run(scenario())


def test_parts_leave_in_order_of_arrival(lane: Lane, transport: HeldTransport) -> None:
    """First come, first sent: a later request never overtakes."""

    async def scenario() -> None:
        tasks = [await _start(lane, _ids(50 + i)) for i in range(8)]
        for position in range(8):
            if not all(task.done() for task in tasks):
                await transport.answer(position)
        sent = [n for i in range(len(transport.calls)) for n in transport.lengths(i)]
        assert all(early < late for early, late in pairwise(sent))
        assert len(sent) == 8

    asyncio.run(scenario())
