"""The inside of a replica: texts gather while the engine runs, and each caller gets its own vectors."""

import asyncio

import numpy as np

from serve_app.calls import Call, Reply
from serve_app.engines.fake_engine import FakeEngine
from serve_app.manifest import Manifest
from serve_app.replica import Replica
from tests.held_calls import settle, vectors_of
from tests.replica.held_thread import BATCH_TOKENS, HeldThread, start, texts_of, vectors_in


def test_vectors_come_back_in_the_calls_order(replica: Replica, thread: HeldThread) -> None:
    """Batches are sorted by length; the caller never notices."""
    texts = texts_of(9, 2, 5)

    async def scenario() -> None:
        task = start(replica, texts)
        assert [len(ids) for ids in await thread.run_batch()] == [2, 5, 9]
        np.testing.assert_array_equal(vectors_in(await task), vectors_of(texts))

    asyncio.run(scenario())


def test_texts_gather_while_the_engine_runs(replica: Replica, thread: HeldThread) -> None:
    """The first call starts at once, alone; the calls that come meanwhile run together."""
    first, second, third = texts_of(3), texts_of(4, 6), texts_of(5)

    async def scenario() -> None:
        tasks = [start(replica, first)]
        await settle()
        tasks += [start(replica, second), start(replica, third)]
        assert [len(ids) for ids in await thread.run_batch()] == [3]
        assert tasks[0].done()
        assert not tasks[1].done()
        assert [len(ids) for ids in await thread.run_batch()] == [4, 5, 6]
        for task, texts in zip(tasks, [first, second, third], strict=True):
            np.testing.assert_array_equal(vectors_in(await task), vectors_of(texts))
        assert thread.held == []

    asyncio.run(scenario())


def test_batches_stay_within_the_padded_tokens(replica: Replica, thread: HeldThread) -> None:
    """A long call runs in several length-sorted batches, the oldest text in the first."""
    texts = texts_of(16, 4, 16, 4, 16, 16, 4, 16)

    async def scenario() -> None:
        task = start(replica, texts)
        batches = []
        while not task.done():
            batches.append([len(ids) for ids in await thread.run_batch()])
        assert batches == [[4, 4, 4, 16], [16, 16, 16, 16]]
        assert all(len(b) * max(b) <= BATCH_TOKENS for b in batches)
        np.testing.assert_array_equal(vectors_in(await task), vectors_of(texts))

    asyncio.run(scenario())


def test_no_call_starves(replica: Replica, thread: HeldThread) -> None:
    """A long text runs in the very next batch, however many short ones keep arriving."""

    async def scenario() -> None:
        start(replica, texts_of(1))
        await settle()
        long = start(replica, texts_of(64))
        newer = [start(replica, texts_of(1)) for _ in range(3)]
        await thread.run_batch()
        newer += [start(replica, texts_of(1)) for _ in range(3)]
        await thread.run_batch()
        assert long.done()
        await thread.run_batch()
        await asyncio.gather(*newer)

    asyncio.run(scenario())


def test_the_engine_runs_on_a_thread_of_its_own(engine: FakeEngine, manifest: Manifest) -> None:
    """With the real thread in place, many calls at once all get their own vectors."""
    replica = Replica(engine, manifest, name="r1")
    calls = [[np.array([i, j], dtype=np.int32) for j in range(1 + i % 5)] for i in range(20)]

    async def scenario() -> list[Reply]:
        return await asyncio.gather(*(replica.embed(Call.of(texts)) for texts in calls))

    for reply, texts in zip(asyncio.run(scenario()), calls, strict=True):
        np.testing.assert_array_equal(vectors_in(reply), vectors_of(texts))
