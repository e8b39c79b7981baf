"""Engines that fail or miscount under way: their callers hear of it, and nobody else."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from serve_app.engines.base import TokenIds, Vectors
from serve_app.engines.fake_engine import FakeEngine
from serve_app.replica import Replica
from tests.held_calls import DIMS, settle, vectors_of
from tests.replica.held_thread import HeldThread, start, texts_of, vectors_in


class Picky(FakeEngine):
    """Fails on texts with a certain token."""

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        if any(13 in ids for ids in texts):
            raise RuntimeError("cannot embed a 13")
        return super().embed(texts)


class TestAFailingEngine:
    """An engine's failure is its callers' alone."""

    @pytest.fixture
    def engine(self) -> FakeEngine:
        return Picky(dims=DIMS)

    def test_only_the_callers_in_the_batch_hear_of_it(
        self, replica: Replica, thread: HeldThread
    ) -> None:
        """The batch's callers get the error; calls before and after it their vectors."""
        bad = [np.array([13], dtype=np.int32)]

        async def scenario() -> None:
            before = start(replica, texts_of(2))
            await settle()
            failed = [start(replica, bad), start(replica, texts_of(1))]
            await thread.run_batch()
            after = start(replica, texts_of(3))  # arrives while the batch that fails runs
            await thread.run_batch()
            await thread.run_batch()
            outcomes = await asyncio.gather(*failed, return_exceptions=True)
            assert [str(outcome) for outcome in outcomes] == ["cannot embed a 13"] * 2
            np.testing.assert_array_equal(vectors_in(await before), vectors_of(texts_of(2)))
            np.testing.assert_array_equal(vectors_in(await after), vectors_of(texts_of(3)))

        asyncio.run(scenario())

    def test_the_rest_of_a_failed_call_is_not_run(
        self, replica: Replica, thread: HeldThread
    ) -> None:
        """A call whose first batch failed has nobody to give the second one's vectors to."""
        bad = [np.full(64, 13, dtype=np.int32), *texts_of(64)]

        async def scenario() -> None:
            task = start(replica, bad)
            await thread.run_batch()
            with pytest.raises(RuntimeError, match="cannot embed a 13"):
                await task
            assert thread.held == []
            assert replica.state.queued_tokens == 0

        asyncio.run(scenario())


class Miscounting(FakeEngine):
    """Gives one vector too few for batches of two, once it is warm."""

    warm = False

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        vectors = super().embed(texts)
        return vectors[:-1] if self.warm and len(texts) == 2 else vectors


class TestAMiscountingEngine:
    """An engine that breaks its contract after the start."""

    @pytest.fixture
    def engine(self) -> FakeEngine:
        return Miscounting(dims=DIMS)

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_the_callers_hear_of_it(
        self, replica: Replica, thread: HeldThread, engine: Miscounting
    ) -> None:
        """Too few vectors are a failure of the batch; nobody is left waiting."""
        engine.warm = True

        async def scenario() -> bool:
            task = start(replica, texts_of(2, 2))
            await thread.run_batch()
            return task.done()

        assert asyncio.run(scenario())
