"""Several batches side by side: as many as the replica has streams, each with its own calls' fate."""

import asyncio
from collections.abc import Sequence
from threading import Barrier, Lock

import numpy as np
import pytest

from serve_app import replica as replica_module
from serve_app.calls import Call, Reply
from serve_app.engines.base import TokenIds, Vectors
from serve_app.engines.fake_engine import FakeEngine
from serve_app.manifest import Manifest
from serve_app.replica import Replica
from tests.held_calls import DIMS, settle, vectors_of
from tests.replica.held_thread import BATCH_TOKENS, HeldThread, start, texts_of, vectors_in
from tests.replica.test_failing_engines import Picky

DEADLOCKED_S = 60.0


@pytest.fixture
def streams() -> int:
    return 2


class InPairs(FakeEngine):
    """Returns from no batch before another is inside."""

    def __init__(self) -> None:
        super().__init__(dims=DIMS)
        self._pair = Barrier(2, timeout=DEADLOCKED_S)

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        self._pair.wait()
        return super().embed(texts)


class Counting(FakeEngine):
    """Knows how many batches were inside at once."""

    def __init__(self) -> None:
        super().__init__(dims=DIMS)
        self._lock = Lock()
        self._inside = self.most_inside = 0

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        with self._lock:
            self._inside += 1
            self.most_inside = max(self.most_inside, self._inside)
        try:
            return super().embed(texts)
        finally:
            with self._lock:
                self._inside -= 1


def _calls(count: int) -> list[list[TokenIds]]:
    """Each fills a batch."""
    return [[np.full(BATCH_TOKENS, i, dtype=np.int32)] for i in range(count)]


async def _all(replica: Replica, calls: Sequence[list[TokenIds]]) -> list[Reply]:
    return await asyncio.gather(*(replica.embed(Call.of(texts)) for texts in calls))


def test_two_batches_are_in_the_engine_at_once(manifest: Manifest) -> None:
    """An engine that waits for a second batch before it ends the first gets it, warm-up included."""
    replica, calls = Replica(InPairs(), manifest, name="r1", streams=2), _calls(8)
    for reply, texts in zip(asyncio.run(_all(replica, calls)), calls, strict=True):
        np.testing.assert_array_equal(vectors_in(reply), vectors_of(texts))


@pytest.mark.parametrize("streams", [1, 3])
def test_never_more_batches_than_streams_are_in_the_engine(
    manifest: Manifest, streams: int
) -> None:
    """With real threads and many calls at once; a replica of one stream never overlaps two."""
    engine, calls = Counting(), _calls(40)
    replica = Replica(engine, manifest, name="r1", streams=streams)
    for reply, texts in zip(asyncio.run(_all(replica, calls)), calls, strict=True):
        np.testing.assert_array_equal(vectors_in(reply), vectors_of(texts))
    assert 1 <= engine.most_inside <= streams


def test_each_stream_is_warmed_up(replica: Replica, engine: FakeEngine) -> None:
    """Each batch runs in both at once, as first runs allocate for each apart."""
    assert replica.state.queued_tokens == 0
    each = [1, BATCH_TOKENS // 8, 1, BATCH_TOKENS // 16]
    assert engine.batch_sizes == [size for size in each for _ in range(2)]


def test_a_free_stream_takes_a_call_at_once(replica: Replica, thread: HeldThread) -> None:
    """While the first batch runs the second call does not wait; the third does, for either."""

    async def scenario() -> None:
        first = start(replica, texts_of(3))
        await settle()
        second = start(replica, texts_of(4))
        await settle()
        third = start(replica, texts_of(5))
        await settle()
        assert thread.lengths() == [[3], [4]]
        assert replica.state.queued_tokens == 5
        await thread.run_batch(1)
        assert (first.done(), second.done()) == (False, True)
        assert thread.lengths() == [[3], [5]]
        await thread.run_batch(1)
        assert third.done()
        assert not first.done()
        await thread.run_batch()
        for task, texts in zip((first, second, third), map(texts_of, (3, 4, 5)), strict=True):
            np.testing.assert_array_equal(vectors_in(await task), vectors_of(texts))
        assert thread.held == []

    asyncio.run(scenario())


def test_calls_of_one_moment_share_a_batch(replica: Replica, thread: HeldThread) -> None:
    """What fits into one batch is not torn apart because a second stream is free."""

    async def scenario() -> None:
        tasks = [start(replica, texts_of(n)) for n in (3, 4, 5)]
        await settle()
        assert thread.lengths() == [[3, 4, 5]]
        await thread.run_batch()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_a_long_call_is_spread_over_the_streams(replica: Replica, thread: HeldThread) -> None:
    """Its batches run side by side, end in any order, and come back in the call's."""
    texts = texts_of(64, 63, 62)

    async def scenario() -> None:
        task = start(replica, texts)
        await settle()
        assert thread.lengths() == [[64], [63]]
        await thread.run_batch(1)
        await thread.run_batch(1)
        assert not task.done()
        await thread.run_batch()
        np.testing.assert_array_equal(vectors_in(await task), vectors_of(texts))

    asyncio.run(scenario())


def test_a_cancelled_call_leaves_the_queue_of_both(replica: Replica, thread: HeldThread) -> None:
    """Who has gone is passed over by whichever stream is free next."""

    async def scenario() -> None:
        running = [start(replica, texts_of(64, 64))]
        await settle()
        gone, waits = start(replica, texts_of(2)), start(replica, texts_of(3))
        await settle()
        gone.cancel()
        await thread.run_batch(1)
        assert thread.lengths() == [[64], [3]]
        await thread.run_batch(0)
        assert thread.lengths() == [[3]]
        await thread.run_batch()
        await asyncio.gather(*running, waits)

    asyncio.run(scenario())


def test_a_late_text_reaches_neither_stream(
    replica: Replica, thread: HeldThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is dropped when the next batch is taken, while another one runs."""
    clock = {"s": 100.0}
    monkeypatch.setattr(replica_module.time, "monotonic", lambda: clock["s"])

    async def scenario() -> None:
        running = start(replica, texts_of(64, 64))
        await settle()
        call = Call.of(texts_of(2, 3), (500, float("inf")))
        task = asyncio.create_task(replica.embed(call))
        await settle()
        clock["s"] = 100.5
        await thread.run_batch(0)
        assert thread.lengths() == [[64], [3]]
        await thread.run_batch(1)
        assert (await task).dropped == (0,)
        await thread.run_batch()
        assert (await running).dropped == ()

    asyncio.run(scenario())


class TestAFailingBatch:
    """Beside one that does not."""

    @pytest.fixture
    def engine(self) -> FakeEngine:
        return Picky(dims=DIMS)

    def test_only_its_own_calls_hear_of_it(self, replica: Replica, thread: HeldThread) -> None:
        """The other stream's batch goes on, and the stream of the failure takes the next one."""
        bad = [np.array([13], dtype=np.int32)]

        async def scenario() -> None:
            good = start(replica, texts_of(2))
            await settle()
            failed = start(replica, bad)
            await settle()
            after = start(replica, texts_of(3))
            await thread.run_batch(1)
            with pytest.raises(RuntimeError, match="cannot embed a 13"):
                await failed
            assert thread.lengths() == [[2], [3]]
            await thread.run_batch(0)
            await thread.run_batch()
            np.testing.assert_array_equal(vectors_in(await good), vectors_of(texts_of(2)))
            np.testing.assert_array_equal(vectors_in(await after), vectors_of(texts_of(3)))

        asyncio.run(scenario())

    def test_a_call_that_failed_in_one_stream_may_still_run_in_the_other(
        self, replica: Replica, thread: HeldThread
    ) -> None:
        """Its caller hears of the failure at once, and what comes after it moves nobody."""
        texts = [np.full(64, 13, dtype=np.int32), *texts_of(63)]

        async def scenario() -> None:
            task = start(replica, texts)
            await settle()
            assert thread.lengths() == [[64], [63]]
            await thread.run_batch(0)
            with pytest.raises(RuntimeError, match="cannot embed a 13"):
                await task
            await thread.run_batch()
            next_one = start(replica, texts_of(3))
            await thread.run_batch()
            np.testing.assert_array_equal(vectors_in(await next_one), vectors_of(texts_of(3)))

        asyncio.run(scenario())
