"""Whatever happens to requests and calls, in any order, everything that was taken is given back."""

import asyncio
import time
from pathlib import Path
from unittest import mock

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from serve_app import dispatch
from serve_app.engines.tokenization import Tokenized
from serve_app.errors import InternalError, ReplicaDied, ServeAppError
from serve_app.fleet import Fleet
from serve_app.parts import Embedded
from serve_app.policy.hint import Hint
from serve_app.registry import load_ladder
from serve_app.settings import Settings
from tests.held_calls import HeldTransport, passed, settle, texts_of, vectors_of

PIN = Hint(variant="fake-int8")

asks = st.tuples(
    st.just("ask"),
    st.lists(st.integers(1, 90), min_size=1, max_size=4),
    st.sampled_from(["patient", "late", "expires"]),
)
steps = st.lists(
    st.one_of(
        asks,
        st.tuples(st.sampled_from(["cancel", "answer", "drop", "die", "fail"]), st.integers(0, 9)),
    ),
    max_size=25,
)


class Story:
    """A fleet, requests to one of its variants, and the calls that carry them."""

    def __init__(self, artifacts: Path) -> None:
        self.transport = HeldTransport()
        ladder = load_ladder(artifacts)
        transports = dict.fromkeys((r.manifest.variant for r in ladder.rungs), self.transport)
        self.fleet = Fleet(ladder, transports, settings=Settings(cores=2))
        self.fleet.brain.set_ready("fake-int8")
        self.requests: list[tuple[list[int], asyncio.Task[Embedded]]] = []

    async def ask(self, lengths: list[int], patience: str) -> None:
        texts = Tokenized(texts_of(*lengths), [])
        decision = self.fleet.decide(PIN, tokens=texts.tokens, elapsed_ms=0, client="a")
        if decision.chosen is None:  # too much is queued: nothing was taken
            return
        now_s = time.monotonic()
        deadline_s = {"patient": None, "late": now_s - 1, "expires": now_s + 3600}[patience]
        expires = patience == "expires"
        with mock.patch.object(dispatch, "_loop_time", passed if expires else _never):
            work = self.fleet.embed(PIN, decision, texts, deadline_s=deadline_s)
            self.requests.append((lengths, asyncio.create_task(work)))
            await settle()

    async def happen(self, what: str, number: int) -> None:
        if what == "cancel":
            if self.requests:
                self.requests[number % len(self.requests)][1].cancel()
            await settle()
            return
        if not (open_calls := self.open_calls()):
            return
        position = open_calls[number % len(open_calls)]
        if what == "die":
            await self.transport.fail(position, ReplicaDied("gone"))
        elif what == "fail":
            await self.transport.fail(position, InternalError("broken"))
        else:
            replica = f"r{number % 2}"
            dropped = (0,) if what == "drop" else ()
            await self.transport.answer(position, replica=replica, dropped=dropped)

    def open_calls(self) -> list[int]:
        return [i for i, (_, answer) in enumerate(self.transport.calls) if not answer.done()]

    async def end(self) -> None:
        """Let all that is still on its way arrive."""
        while open_calls := self.open_calls():
            await self.transport.answer(open_calls[0])

    async def check(self) -> None:
        load = self.fleet.brain.load("fake-int8")
        assert (load.inflight_tokens, load.calls, load._called_tokens) == (0, 0, 0)
        assert (len(load.line), len(load.pool.line), load.pool.busy) == (0, 0, 0)
        lane = self.fleet.lanes["fake-int8"]
        assert (len(lane._queue), len(lane._calls)) == (0, 0)
        for lengths, task in self.requests:
            assert task.done()
            if task.cancelled():
                continue
            if (error := task.exception()) is not None:
                assert isinstance(error, ServeAppError)
            else:
                np.testing.assert_array_equal(task.result().vectors, vectors_of(texts_of(*lengths)))
        counts = self.fleet.tally.requests["fake-int8"]
        assert sum(counts.values()) == len(self.requests)


def _never(_: float | None) -> None:
    """In `dispatch._loop_time`'s place: deadlines are checked, and no timer runs."""


@given(steps=steps)
def test_tokens_in_flight_return_to_zero(clear_cut_artifacts: Path, steps: list[tuple]) -> None:
    """After completion, cancellation, lateness, death and retry in any order nothing is in flight.

    Each request ends exactly once: with its own vectors, or with one of our errors.
    """

    async def scenario() -> None:
        story = Story(clear_cut_artifacts)
        for what, *details in steps:
            await (story.ask(*details) if what == "ask" else story.happen(what, *details))
        await story.end()
        await settle()
        await story.check()

    asyncio.run(scenario())
