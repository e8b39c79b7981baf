"""Lanes that share cores: whose call leaves next, and what is not sent any more."""

import asyncio
import time
from pathlib import Path

import pytest

from serve_app.dispatch import Lane, Pump
from serve_app.errors import DeadlineExceeded
from serve_app.manifest import read_manifest
from serve_app.policy.brain import Brain, Options, VariantFacts
from serve_app.policy.hint import Hint
from tests.held_calls import CALL_TOKENS, HeldTransport, settle, start, texts_of


class Host:
    """Two lanes of as many streams as there are cores, on transports of their own."""

    def __init__(self, artifacts: Path, *, cores: float = 1) -> None:
        manifests = [read_manifest(artifacts / name) for name in ("fake-fp32", "fake-int8")]
        facts = [
            VariantFacts(
                variant=m.variant, fidelity=m.fidelity.p1, profile=m.profile, streams=round(cores)
            )
            for m in manifests
        ]
        brain = Brain(
            facts, options=Options(default=Hint(budget_ms=1000.0), cores=cores), draw=float
        )
        pump = Pump()
        self.transports = [HeldTransport(), HeldTransport()]
        self.best, self.cheap = (
            Lane(m, transport, brain=brain, pump=pump)
            for m, transport in zip(manifests, self.transports, strict=True)
        )

    @property
    def sent(self) -> list[int]:
        """Calls of each."""
        return [len(transport.calls) for transport in self.transports]


def test_of_all_lanes_the_first_turn_leaves_next(clear_cut_artifacts: Path) -> None:
    """While a core is busy texts wait; then the shorter work goes first, whichever came first."""
    host = Host(clear_cut_artifacts)

    async def scenario() -> None:
        tasks = [await start(host.best, texts_of(2))]
        tasks.append(await start(host.best, texts_of(9)))
        tasks.append(await start(host.cheap, texts_of(9)))
        assert host.sent == [1, 0]
        await host.transports[0].answer(0)
        assert host.sent == [1, 1]
        tasks.append(await start(host.cheap, texts_of(CALL_TOKENS)))
        await host.transports[1].answer(0)
        await host.transports[1].answer(1)
        assert host.sent == [2, 2]
        await host.transports[0].answer(1)
        await asyncio.gather(*tasks)
        pool = host.best.load.pool
        assert (len(pool.line), pool.busy) == (0, 0)

    asyncio.run(scenario())


def test_calls_that_leave_together_are_no_more_than_there_are_cores(
    clear_cut_artifacts: Path,
) -> None:
    """A call counts as soon as it was decided on, before its task began: the next lane knows."""
    host = Host(clear_cut_artifacts, cores=2)

    async def scenario() -> None:
        tasks = [
            await start(lane, texts_of(CALL_TOKENS, CALL_TOKENS))
            for lane in (host.best, host.cheap)
        ]
        assert sum(host.sent) == 2
        for _ in range(4):
            for transport in host.transports:
                for position, (_, answer) in enumerate(transport.calls):
                    if not answer.done():
                        await transport.answer(position)
                        await settle()
            running = sum(not a.done() for t in host.transports for _, a in t.calls)
            assert running <= 2
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_what_cannot_be_in_time_any_more_is_not_sent(clear_cut_artifacts: Path) -> None:
    """Others have the cores that it does not take; it hears of it when its time is up."""
    host = Host(clear_cut_artifacts)
    alone_s = 9 * host.best.load.profile.per_token_ms / 1000

    async def scenario() -> None:
        hopeless = await start(
            host.best, texts_of(9), deadline_s=time.monotonic() + min(0.5 * alone_s, 0.5)
        )
        assert host.sent == [0, 0]
        assert len(host.best.load.line) == 0
        with pytest.raises(DeadlineExceeded):
            await hopeless
        patient = await start(host.best, texts_of(9))
        assert host.sent == [1, 0]
        await host.transports[0].answer(0)
        await patient

    asyncio.run(scenario())
