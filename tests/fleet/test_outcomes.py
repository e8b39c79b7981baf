"""What becomes of admitted requests, and what is learned of it."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest

from serve_app import dispatch
from serve_app import fleet as fleet_module
from serve_app.engines.tokenization import Tokenized
from serve_app.errors import DeadlineExceeded, InternalError, NotAdmitted, ReplicaDied
from serve_app.fleet import Fleet
from serve_app.metrics import Outcome
from serve_app.parts import Embedded
from serve_app.policy.hint import Hint
from serve_app.registry import Ladder
from serve_app.settings import Settings
from tests.asked import VARIANTS
from tests.fleet.asking import TEXTS, candidates
from tests.held_calls import HeldTransport, passed, settle


@contextmanager
def _seconds_later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> Iterator[None]:
    """The fleet's clock stands so many seconds later than it is."""
    with monkeypatch.context() as patch:
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + seconds)
        patch.setattr(fleet_module, "time", later)
        yield


class TestOutcomes:
    """What becomes of admitted requests, and what is learned of it."""

    PIN = Hint(variant="fake-int8")

    @pytest.fixture
    def transport(self) -> HeldTransport:
        return HeldTransport()

    @pytest.fixture
    def fleet(self, ladder: Ladder, transport: HeldTransport) -> Fleet:
        found = Fleet(ladder, dict.fromkeys(VARIANTS, transport), settings=Settings(cores=8))
        for variant in VARIANTS:
            found.brain.set_ready(variant)
        return found

    async def _start(self, fleet: Fleet, budget_ms: float | None = None) -> asyncio.Task[Embedded]:
        hint = replace(self.PIN, budget_ms=budget_ms)
        decision = fleet.decide(hint, tokens=2, elapsed_ms=0, client="a")
        deadline_s = None if budget_ms is None else time.monotonic() + budget_ms / 1000
        texts = Tokenized(TEXTS, [])
        work = fleet.embed(hint, decision, texts, deadline_s=deadline_s)
        task = asyncio.create_task(work)
        await settle()
        return task

    @staticmethod
    def _p95_factor(fleet: Fleet) -> float:
        forecast = candidates(fleet)[2].forecast
        return forecast.p95_ms / forecast.p50_ms

    def test_an_answer_is_learned_from(self, fleet: Fleet, transport: HeldTransport) -> None:
        """The forecast's error is known then, nothing was missed, and the tokens are back."""

        async def scenario() -> None:
            task = await self._start(fleet, budget_ms=3_600_000)
            assert fleet.brain.load("fake-int8").inflight_tokens == 2
            await transport.answer(0)
            await task

        asyncio.run(scenario())
        load = fleet.brain.load("fake-int8")
        assert load.inflight_tokens == 0
        assert load.forecast_error is not None
        assert fleet.brain.brownout.miss_share == 0
        assert fleet.tally.requests["fake-int8"][Outcome.ANSWERED] == 1
        assert fleet.demand()["fake-int8"] > 0

    def test_a_late_request_is_learned_as_late(
        self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A 504 raises the variant's p95, counts as missed, and frees its tokens and its call."""
        monkeypatch.setattr(dispatch, "_loop_time", passed)
        before = self._p95_factor(fleet)
        two_s_a_look = count(time.monotonic(), 2).__next__
        monkeypatch.setattr(fleet_module, "time", SimpleNamespace(monotonic=two_s_a_look))

        async def scenario() -> None:
            task = await self._start(fleet, budget_ms=3_600_000)
            with pytest.raises(DeadlineExceeded):
                await task

        asyncio.run(scenario())
        self._assert_missed(fleet, Outcome.LATE)
        assert self._p95_factor(fleet) > before

    @pytest.mark.parametrize("waited_s", [0, 2])
    def test_a_client_that_leaves_late_is_learned_as_late(
        self,
        fleet: Fleet,
        transport: HeldTransport,
        monkeypatch: pytest.MonkeyPatch,
        waited_s: float,
    ) -> None:
        """After seconds it counts as a 504 does, at once it teaches nothing; nobody runs its texts."""
        before = self._p95_factor(fleet)

        async def scenario() -> None:
            task = await self._start(fleet)
            with _seconds_later(monkeypatch, waited_s):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await settle()
            assert transport.is_cancelled(0)

        asyncio.run(scenario())
        self._assert_missed(fleet, Outcome.DISCONNECTED)
        if waited_s:
            assert self._p95_factor(fleet) > before
        else:
            assert self._p95_factor(fleet) == pytest.approx(before)

    @staticmethod
    def _assert_missed(fleet: Fleet, outcome: Outcome) -> None:
        load = fleet.brain.load("fake-int8")
        assert (load.inflight_tokens, load.calls) == (0, 0)
        # Who leaves was not failed by the server.
        assert fleet.brain.brownout.miss_share == (outcome is Outcome.LATE)
        assert fleet.tally.requests["fake-int8"][outcome] == 1

    @pytest.mark.parametrize("error", [InternalError("broken"), ReplicaDied("gone")])
    def test_of_failures_nothing_is_learned(
        self, fleet: Fleet, transport: HeldTransport, error: Exception
    ) -> None:
        """They tell nothing of how long a variant takes."""
        before = self._p95_factor(fleet)

        async def scenario() -> None:
            task = await self._start(fleet)
            while not task.done():
                await transport.fail(len(transport.calls) - 1, error)
            with pytest.raises(type(error)):
                await task

        asyncio.run(scenario())
        assert fleet.brain.load("fake-int8").forecast_error is None
        assert self._p95_factor(fleet) == before
        assert fleet.brain.brownout.miss_share == 0
        assert fleet.tally.requests["fake-int8"][Outcome.FAILED] == 1
        assert fleet.brain.load("fake-int8").inflight_tokens == 0

    def test_a_full_queue_is_no_failure_of_the_variant(
        self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Turned away at the lane's door: counted apart, and nothing is learned."""
        monkeypatch.setattr(dispatch, "PARTS_QUEUED_AT_MOST", 0)

        async def scenario() -> None:
            with pytest.raises(NotAdmitted):
                await (await self._start(fleet))

        asyncio.run(scenario())
        assert fleet.tally.requests["fake-int8"][Outcome.TURNED_AWAY] == 1
        assert fleet.brain.brownout.miss_share == 0
