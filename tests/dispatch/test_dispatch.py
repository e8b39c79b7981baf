"""The router's side of a variant: texts travel together, in few calls, each back to its own."""

import asyncio
import time
from itertools import pairwise

import numpy as np
import pytest

from serve_app import dispatch
from serve_app.dispatch import Lane
from serve_app.manifest import Manifest
from serve_app.policy.batching import CALLS_EACH
from tests.held_calls import (
    CALL_TOKENS,
    DIMS,
    HeldTransport,
    fill,
    lane_of,
    start,
    texts_of,
    vectors_of,
)


def test_a_free_lane_sends_at_once(lane: Lane, transport: HeldTransport) -> None:
    """Nothing waits for a call to fill; the vectors are the request's own."""

    async def scenario() -> None:
        task = await start(lane, texts_of(3, 5))
        assert transport.lengths(0) == [3, 5]
        await transport.answer(0, queue_ms=4.0, inference_ms=7.0)
        done = await task
        np.testing.assert_array_equal(done.vectors, vectors_of(texts_of(3, 5)))
        assert done.queue_ms >= 4.0
        assert done.inference_ms == 7.0

    asyncio.run(scenario())


def test_texts_that_arrive_meanwhile_travel_in_one_call(
    lane: Lane, transport: HeldTransport
) -> None:
    """While the calls are taken, requests gather; the next call carries all, each gets its rows."""

    async def scenario() -> None:
        await fill(lane)
        asked = [texts_of(5), texts_of(3), texts_of(6)]
        late = [await start(lane, texts) for texts in asked]
        assert len(transport.calls) == CALLS_EACH
        await transport.answer(0)
        assert transport.lengths(CALLS_EACH) == [3, 5, 6]
        assert len(transport.calls) == CALLS_EACH + 1
        await transport.answer(CALLS_EACH)
        for task, texts in zip(late, asked, strict=True):
            np.testing.assert_array_equal((await task).vectors, vectors_of(texts))
        await transport.answer(1)

    asyncio.run(scenario())


def test_where_engines_crowd_the_cores_a_replica_has_one_call_at_a_time(
    manifest: Manifest, transport: HeldTransport
) -> None:
    """On one core nothing waits at a replica's door, and the next call leaves when one is back."""

    async def scenario() -> None:
        lane = lane_of(manifest, transport, cores=1)
        tasks = [await start(lane, texts_of(CALL_TOKENS)) for _ in range(3)]
        for position in range(3):
            assert len(transport.calls) == position + 1
            await transport.answer(position)
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("cores", "streams", "calls"), [(8, 3, 3), (2, 3, 2), (1, 3, 1), (8, 1, 2)]
)
def test_a_replica_of_several_streams_has_a_call_for_each_while_cores_are_idle(
    manifest: Manifest, transport: HeldTransport, cores: float, streams: int, calls: int
) -> None:
    """As many leave at once, and one more with each that is back."""

    async def scenario() -> None:
        lane = lane_of(manifest, transport, cores=cores, streams=streams)
        tasks = [await start(lane, texts_of(CALL_TOKENS)) for _ in range(6)]
        for position in range(6):
            assert len(transport.calls) == min(position + calls, 6)
            await transport.answer(position)
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_a_request_of_several_texts_travels_alone(lane: Lane, transport: HeldTransport) -> None:
    """Its texts are a batch of their own; single texts pass it, as they go with the oldest one."""

    async def scenario() -> None:
        await fill(lane)
        for lengths in ((3,), (4, 5), (6,)):
            await start(lane, texts_of(*lengths))
        await transport.answer(0)
        await transport.answer(1)
        assert [transport.lengths(i) for i in (2, 3)] == [[3, 6], [4, 5]]
        await transport.answer(2)
        await transport.answer(3)

    asyncio.run(scenario())


def test_a_call_carries_no_more_than_one_batch(lane: Lane, transport: HeldTransport) -> None:
    """What exceeds a call's tokens waits for the next one, in order of arrival."""

    async def scenario() -> None:
        await fill(lane)
        late = [await start(lane, texts_of(CALL_TOKENS // 2)) for _ in range(3)]
        await transport.answer(0)
        await transport.answer(1)
        assert transport.lengths(2) == [CALL_TOKENS // 2] * 2
        assert transport.lengths(3) == [CALL_TOKENS // 2]
        await transport.answer(2)
        assert [task.done() for task in late] == [True, True, False]
        await transport.answer(3)

    asyncio.run(scenario())


def test_calls_in_flight_are_bounded_by_the_replicas_seen(
    lane: Lane, transport: HeldTransport
) -> None:
    """Two calls a replica: a second replica that shows itself takes two more."""

    async def scenario() -> None:
        tasks = [await start(lane, texts_of(CALL_TOKENS)) for _ in range(9)]
        assert len(transport.calls) == CALLS_EACH
        await transport.answer(0, replica="r1")
        assert len(transport.calls) - 1 == CALLS_EACH
        await transport.answer(1, replica="r2")
        assert len(transport.calls) - 2 == 2 * CALLS_EACH
        for position in range(2, 9):
            await transport.answer(position)
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_a_big_request_is_split_and_put_together(lane: Lane, transport: HeldTransport) -> None:
    """More than a call holds goes in several, and comes back as one, in order."""
    texts = texts_of(*[10] * 30)

    async def scenario() -> None:
        task = await start(lane, texts)
        assert [len(transport.lengths(i)) for i in range(2)] == [6, 6]
        await transport.answer(1)
        await transport.answer(0)
        assert [len(transport.lengths(i)) for i in (2, 3)] == [6, 6]
        await transport.answer(3)
        await transport.answer(2)
        assert len(transport.lengths(4)) == 6
        await transport.answer(4)
        np.testing.assert_array_equal((await task).vectors, vectors_of(texts))

    asyncio.run(scenario())


def test_a_text_longer_than_a_call_travels_alone(lane: Lane, transport: HeldTransport) -> None:
    """There is no text that no call can carry."""

    async def scenario() -> None:
        task = await start(lane, texts_of(CALL_TOKENS + 1, 1))
        assert [transport.lengths(i) for i in range(2)] == [[1], [CALL_TOKENS + 1]]
        await transport.answer(0)
        await transport.answer(1)
        assert (await task).vectors.shape == (2, DIMS)

    asyncio.run(scenario())


def test_phases_of_a_split_request_do_not_overlap(lane: Lane, transport: HeldTransport) -> None:
    """Queue and inference together never exceed the time that the request took."""

    async def scenario() -> None:
        started_s = time.monotonic()
        task = await start(lane, texts_of(CALL_TOKENS, CALL_TOKENS))
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
        await fill(lane)
        waits = await start(lane, texts_of(3))
        clock["s"] += 0.020
        await transport.answer(0, queue_ms=3, inference_ms=12)
        assert _hop_ms(lane) == pytest.approx(5)
        clock["s"] += 0.015
        await transport.answer(2, queue_ms=1, inference_ms=9)
        assert _hop_ms(lane) == pytest.approx(5)
        assert (await waits).queue_ms == pytest.approx(20 + 1)
        await transport.answer(1)

    asyncio.run(scenario())


def _hop_ms(lane: Lane) -> float:
    """What the brain takes a call to cost on top while one engine is busy."""
    return lane.load.pool.contention.at(1)[1]


def test_tokens_are_in_flight_until_the_answer(lane: Lane, transport: HeldTransport) -> None:
    """What waits here and what runs there counts, until its request is answered."""

    async def scenario() -> None:
        await fill(lane)
        await start(lane, texts_of(3, 4))
        assert lane.load.inflight_tokens == 2 * CALLS_EACH + 7
        await transport.answer(0)
        assert lane.load.inflight_tokens == 2 * (CALLS_EACH - 1) + 7
        await transport.answer(1)
        await transport.answer(2)
        assert lane.load.inflight_tokens == 0

    asyncio.run(scenario())


def test_time_in_the_lanes_queue_counts_as_queue(
    lane: Lane, transport: HeldTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a request waits here is added to what it waits at the replica."""

    async def scenario() -> None:
        await fill(lane)
        waits = await start(lane, texts_of(3))
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
    """First come, first sent, where no two fit into one call."""

    async def scenario() -> None:
        tasks = [await start(lane, texts_of(50 + i)) for i in range(8)]
        for position in range(8):
            if not all(task.done() for task in tasks):
                await transport.answer(position)
        sent = [n for i in range(len(transport.calls)) for n in transport.lengths(i)]
        assert all(early < late for early, late in pairwise(sent))
        assert len(sent) == 8

    asyncio.run(scenario())
