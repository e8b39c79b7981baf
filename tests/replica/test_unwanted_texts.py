"""Texts that nobody waits for any more, whose callers left or whose time is over: no engine runs them."""

import asyncio

import numpy as np
import pytest

from serve_app import replica as replica_module
from serve_app.calls import Call, Reply
from serve_app.engines.base import TokenIds
from serve_app.replica import Replica
from tests.held_calls import settle, vectors_of
from tests.replica.held_thread import HeldThread, start, texts_of, vectors_in


def test_a_cancelled_callers_text_is_not_embedded(replica: Replica, thread: HeldThread) -> None:
    """Who has gone costs no engine time; who waits beside them is served."""

    async def scenario() -> None:
        first = start(replica, texts_of(1))
        await settle()
        gone, waits = start(replica, texts_of(2)), start(replica, texts_of(3))
        await settle()
        gone.cancel()
        await thread.run_batch()
        assert [len(ids) for ids in await thread.run_batch()] == [3]
        await asyncio.gather(first, waits)
        assert thread.held == []

    asyncio.run(scenario())


def test_a_queue_of_cancelled_callers_only_runs_nothing(
    replica: Replica, thread: HeldThread
) -> None:
    """When all have gone the engine stays idle, and the next call starts it again."""

    async def scenario() -> None:
        first = start(replica, texts_of(1))
        await settle()
        gone = start(replica, texts_of(2))
        await settle()
        gone.cancel()
        await thread.run_batch()
        await first
        assert (thread.held, replica.state.queued_tokens) == ([], 0)
        last = start(replica, texts_of(3))
        await thread.run_batch()
        np.testing.assert_array_equal(vectors_in(await last), vectors_of(texts_of(3)))

    asyncio.run(scenario())


def test_cancelled_texts_leave_the_queue(replica: Replica, thread: HeldThread) -> None:
    """What a caller that left had queued counts no more once the next batch is taken."""

    async def scenario() -> None:
        first = start(replica, texts_of(1))
        await settle()
        gone = start(replica, texts_of(*[16] * 10))
        waits = [start(replica, texts_of(16, 16, 16, 16)) for _ in range(2)]
        await settle()
        assert replica.state.queued_tokens == 16 * 18
        gone.cancel()
        await thread.run_batch()
        assert replica.state.queued_tokens == 16 * 4
        await thread.run_batch()
        await thread.run_batch()
        await asyncio.gather(first, *waits)
        assert thread.held == []

    asyncio.run(scenario())


class TestDeadlines:
    """Texts whose time is over."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
        found = {"s": 100.0}
        monkeypatch.setattr(replica_module.time, "monotonic", lambda: found["s"])
        return found

    @staticmethod
    def _start(replica: Replica, texts: list[TokenIds], *left_ms: float) -> asyncio.Task[Reply]:
        return asyncio.create_task(replica.embed(Call.of(texts, left_ms)))

    def test_a_text_that_is_late_never_reaches_the_engine(
        self, replica: Replica, thread: HeldThread, clock: dict[str, float]
    ) -> None:
        """It counts from the call's arrival; the reply names the text, whose row is no vector."""
        texts = texts_of(2, 3, 4)

        async def scenario() -> None:
            first = start(replica, texts_of(1))
            await settle()
            task = self._start(replica, texts, 500, 501, float("inf"))
            await settle()
            clock["s"] = 100.5
            await thread.run_batch()
            assert [len(ids) for ids in await thread.run_batch()] == [3, 4]
            reply = await task
            assert reply.dropped == (0,)
            assert np.isnan(vectors_in(reply)[0]).all()
            np.testing.assert_array_equal(vectors_in(reply)[1:], vectors_of(texts)[1:])
            assert (await first).dropped == ()

        asyncio.run(scenario())

    def test_a_call_of_late_texts_only_is_answered_without_the_engine(
        self, replica: Replica, thread: HeldThread, clock: dict[str, float]
    ) -> None:
        """Nothing runs for it, and what is queued behind it does not wait."""

        async def scenario() -> None:
            first = start(replica, texts_of(1))
            await settle()
            late, next_one = self._start(replica, texts_of(2, 3), 1, 1), start(replica, texts_of(4))
            await settle()
            clock["s"] = 101.0
            await thread.run_batch()
            reply = await late
            assert (reply.dropped, reply.inference_ms) == ((0, 1), 0)
            assert [len(ids) for ids in await thread.run_batch()] == [4]
            await asyncio.gather(first, next_one)

        asyncio.run(scenario())

    @pytest.mark.parametrize("left_ms", [0.0, -5.0])
    def test_a_text_that_arrives_late_is_dropped_at_once(
        self, replica: Replica, thread: HeldThread, clock: dict[str, float], left_ms: float
    ) -> None:
        """No time left is too late, also for an idle replica."""
        del clock

        async def scenario() -> None:
            reply = await self._start(replica, texts_of(2), left_ms)
            assert reply.dropped == (0,)
            assert thread.held == []

        asyncio.run(scenario())
