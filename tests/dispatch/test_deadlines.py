"""Work that nobody waits for: deadlines that pass, clients that leave, and what is given up then."""

import asyncio
import math
import time

import numpy as np
import pytest

from serve_app import dispatch
from serve_app.dispatch import Lane
from serve_app.errors import DeadlineExceeded, InternalError, ReplicaDied
from tests.held_calls import (
    CALL_TOKENS,
    DIMS,
    HeldTransport,
    fill,
    passed,
    settle,
    start,
    texts_of,
    vectors_of,
)


def test_a_deadline_that_passes_is_an_error_and_frees_the_tokens(
    lane: Lane, transport: HeldTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request ends with 504, its call is given up, and the next one is served."""

    async def scenario() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(dispatch, "_loop_time", passed)
            task = await start(lane, texts_of(3), deadline_s=time.monotonic() + 3600)
        with pytest.raises(DeadlineExceeded):
            await task
        assert lane.load.inflight_tokens == 0
        assert transport.is_cancelled(0)
        again = await start(lane, texts_of(4))
        await transport.answer(1)
        np.testing.assert_array_equal((await again).vectors, vectors_of(texts_of(4)))

    asyncio.run(scenario())


def test_a_late_answer_disturbs_nobody(lane: Lane, transport: HeldTransport) -> None:
    """A call goes on without the request that left; the other one gets its own rows."""

    async def scenario() -> None:
        await fill(lane)
        left, waits = await start(lane, texts_of(3)), await start(lane, texts_of(4))
        await transport.answer(0)
        assert transport.lengths(2) == [3, 4]
        left.cancel()
        await settle()
        expected = vectors_of(transport.calls[2][0].texts())[1:]
        await transport.answer(2)
        np.testing.assert_array_equal((await waits).vectors, expected)
        await transport.answer(1)

    asyncio.run(scenario())


def test_what_is_late_already_is_not_sent(lane: Lane, transport: HeldTransport) -> None:
    """A deadline that has passed ends the request before its call leaves, though calls are free."""

    async def scenario() -> None:
        late = await start(lane, texts_of(3), deadline_s=time.monotonic() - 1)
        with pytest.raises(DeadlineExceeded):
            await late
        assert transport.calls == []
        assert lane.load.inflight_tokens == 0

    asyncio.run(scenario())


def test_a_call_is_given_up_when_the_last_one_leaves(lane: Lane, transport: HeldTransport) -> None:
    """While one request of a call still waits, the call goes on; then its place is free."""

    async def scenario() -> None:
        await fill(lane)
        both = [await start(lane, texts_of(3)), await start(lane, texts_of(4))]
        await transport.answer(0)
        assert transport.lengths(2) == [3, 4]
        next_one = await start(lane, texts_of(5))
        both[0].cancel()
        await settle()
        assert not transport.is_cancelled(2)
        both[1].cancel()
        await settle()
        assert transport.is_cancelled(2)
        assert transport.lengths(3) == [5]
        await transport.answer(3)
        assert (await next_one).vectors.shape == (1, DIMS)
        await transport.answer(1)
        assert (lane.load.calls, lane.load.inflight_tokens) == (0, 0)

    asyncio.run(scenario())


def test_a_request_of_several_calls_gives_up_all_of_them(
    lane: Lane, transport: HeldTransport
) -> None:
    """A client that leaves takes every call of its own along, and what had not left is not sent."""

    async def scenario() -> None:
        task = await start(lane, texts_of(*[CALL_TOKENS] * 3))
        task.cancel()
        await settle()
        assert [transport.is_cancelled(i) for i in range(2)] == [True, True]
        assert len(transport.calls) == 2
        assert (lane.load.calls, lane.load.inflight_tokens) == (0, 0)

    asyncio.run(scenario())


def test_texts_travel_with_the_time_they_have_left(
    lane: Lane, transport: HeldTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each text has the milliseconds of its request when the call leaves; without a budget, no end."""
    clock = {"s": time.monotonic()}
    monkeypatch.setattr(dispatch.time, "monotonic", lambda: clock["s"])

    async def scenario() -> None:
        await fill(lane)
        await start(lane, texts_of(3), deadline_s=clock["s"] + 5)
        await start(lane, texts_of(5))
        await start(lane, texts_of(6, 7), deadline_s=clock["s"] + 4)
        clock["s"] += 2
        await transport.answer(0)
        await transport.answer(1)
        left = [transport.calls[i][0].deadlines_s(arrived_s=100.0) for i in (2, 3)]
        assert left[0] == pytest.approx([103.0, math.inf])
        assert left[1] == pytest.approx([102.0, 102.0])

    asyncio.run(scenario())


def test_what_a_replica_dropped_is_late_and_no_vector(lane: Lane, transport: HeldTransport) -> None:
    """The request whose text was dropped hears 504; the others of its call have their vectors."""

    async def scenario() -> None:
        await fill(lane)
        late, waits = await start(lane, texts_of(4)), await start(lane, texts_of(3))
        await transport.answer(0)
        assert transport.lengths(2) == [3, 4]
        await transport.answer(2, dropped=(1,))
        with pytest.raises(DeadlineExceeded):
            await late
        np.testing.assert_array_equal((await waits).vectors, vectors_of(texts_of(3)))
        await transport.answer(1)

    asyncio.run(scenario())


def test_a_second_try_carries_only_what_is_wanted(lane: Lane, transport: HeldTransport) -> None:
    """Who left while the first replica had the call is not sent to the second."""

    async def scenario() -> None:
        await fill(lane)
        gone, waits = await start(lane, texts_of(3)), await start(lane, texts_of(4))
        await transport.answer(0)
        gone.cancel()
        await settle()
        await transport.fail(2, ReplicaDied("gone"))
        assert transport.lengths(3) == [4]
        await transport.answer(3)
        np.testing.assert_array_equal((await waits).vectors, vectors_of(texts_of(4)))
        await transport.answer(1)

    asyncio.run(scenario())


def test_a_504_is_not_tried_again(lane: Lane, transport: HeldTransport) -> None:
    """What was late once would be later still."""

    async def scenario() -> None:
        task = await start(lane, texts_of(3))
        await transport.fail(0, DeadlineExceeded("late"))
        with pytest.raises(DeadlineExceeded):
            await task
        assert len(transport.calls) == 1

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
        assert transport.is_cancelled(0)

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


def test_a_request_that_failed_in_part_gives_up_the_rest(
    lane: Lane, transport: HeldTransport
) -> None:
    """Once one of its calls has failed, the others are cancelled and no further one leaves."""

    async def scenario() -> None:
        task = await start(lane, texts_of(*[CALL_TOKENS] * 4))
        await transport.fail(0, InternalError("broken"))
        with pytest.raises(InternalError):
            await task
        assert transport.is_cancelled(1)
        assert all(transport.is_cancelled(i) for i in range(1, len(transport.calls)))
        assert (lane.load.calls, lane.load.inflight_tokens) == (0, 0)
        await start(lane, texts_of(2))
        assert transport.lengths(len(transport.calls) - 1) == [2]

    asyncio.run(scenario())
