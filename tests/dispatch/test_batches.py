"""A call is one batch: which texts it carries, and that each vector finds back to its text."""

import asyncio
import math
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serve_app.manifest import read_manifest
from tests.held_calls import HeldTransport, lane_of, start, texts_of, vectors_of


def test_texts_of_like_length_share_a_call(clear_cut_artifacts: Path) -> None:
    """A long request is cut into calls of neighbours in length; its vectors come back in its order."""
    transport, texts = HeldTransport(), texts_of(40, 3, 20, 5, 30, 4)
    lane = lane_of(read_manifest(clear_cut_artifacts / "fake-int8"), transport)

    async def scenario() -> None:
        task = await start(lane, texts)
        assert [transport.lengths(i) for i in range(2)] == [[40], [3, 4, 5, 20, 30]]
        await transport.answer(1)
        await transport.answer(0)
        np.testing.assert_array_equal((await task).vectors, vectors_of(texts))

    asyncio.run(scenario())


@given(st.lists(st.integers(1, 90), min_size=1, max_size=12))
def test_vectors_are_in_the_requests_order(clear_cut_artifacts: Path, lengths: list[int]) -> None:
    """However a request's texts are sorted and cut on the way, each vector is its own text's."""
    transport, texts = HeldTransport(), texts_of(*lengths)
    lane = lane_of(read_manifest(clear_cut_artifacts / "fake-int8"), transport)

    async def scenario() -> None:
        task, position = await start(lane, texts), 0
        while not task.done():
            await transport.answer(position)
            position += 1
        np.testing.assert_array_equal((await task).vectors, vectors_of(texts))

    asyncio.run(scenario())


@given(
    st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=3), min_size=1, max_size=12),
    st.integers(0, 5),
)
def test_the_first_in_line_is_always_in_the_next_call(
    clear_cut_artifacts: Path, asked: list[list[int]], gone: int
) -> None:
    """No text starves, long or short: of the parts that somebody waits for, that with the first turn leaves next."""
    lane = lane_of(read_manifest(clear_cut_artifacts / "fake-int8"), HeldTransport())

    async def scenario() -> None:
        for lengths in asked:
            lane._queue += lane._split(texts_of(*lengths), deadline_s=math.inf)
        lane._queue.sort(key=lambda part: part.turn_s)
        for part in list(lane._queue)[:gone]:
            part.result.cancel()
        waiting = [part for part in lane._queue if not part.result.done()]
        while waiting:
            taken = lane._take(0.0)
            assert waiting[0] in taken
            waiting = [part for part in waiting if part not in taken]
        assert lane._take(0.0) == []
        assert not lane._queue
        assert len(lane.load.line) == len(lane.load.pool.line) == 0

    asyncio.run(scenario())
