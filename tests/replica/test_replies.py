"""What a reply tells besides vectors: the replica's queue, its profile, its pace, and where time went."""

import asyncio
from dataclasses import replace

import pytest

from serve_app import replica as replica_module
from serve_app.calls import Call, Reply
from serve_app.engines.fake_engine import FakeEngine
from serve_app.manifest import Manifest
from serve_app.policy.replica_state import ReplicaState
from serve_app.replica import Replica
from tests.held_calls import settle
from tests.replica.held_thread import HeldThread, start, texts_of


def test_the_reply_tells_the_replicas_state(replica: Replica, thread: HeldThread) -> None:
    """What waits behind a call travels back with it; an idle replica has nothing queued."""

    async def scenario() -> None:
        first = start(replica, texts_of(3))
        await settle()
        second = start(replica, texts_of(4, 5))
        await settle()
        assert replica.state == ReplicaState(replica="r1", queued_tokens=9)
        await thread.run_batch()
        await thread.run_batch()
        assert (await first).state.replica == "r1"
        after = (await second).state
        assert after == ReplicaState(replica="r1", queued_tokens=0, pace=after.pace)

    asyncio.run(scenario())


def test_a_profile_of_its_own_travels_with_every_reply(
    engine: FakeEngine, manifest: Manifest
) -> None:
    """Each router hears of it, whenever it started; its batches are the replica's."""
    own = replace(manifest.profile, hardware="this machine", batch_tokens=16)
    replica = Replica(engine, manifest, name="r1", measured=own)
    engine.batch_sizes.clear()

    async def scenario() -> list[Reply]:
        return [await replica.embed(Call.of(texts_of(8, 8, 8))) for _ in range(2)]

    assert [reply.state.measured for reply in asyncio.run(scenario())] == [own, own]
    assert engine.batch_sizes == [2, 1, 2, 1]


def test_phase_times_split_the_calls_time(
    replica: Replica, thread: HeldThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queue is arrival to first batch, inference from there to the end of the last one."""
    clock = {"s": 100.0}
    monkeypatch.setattr(replica_module.time, "monotonic", lambda: clock["s"])

    async def scenario() -> None:
        start(replica, texts_of(1))
        await settle()
        task = start(replica, texts_of(64, 64))
        await settle()
        clock["s"] = 100.5
        await thread.run_batch()
        clock["s"] = 100.75
        await thread.run_batch()
        clock["s"] = 101.0
        await thread.run_batch()
        reply = await task
        assert reply.queue_ms == pytest.approx(500)
        assert reply.inference_ms == pytest.approx(500)

    asyncio.run(scenario())  # on the patched clock too, which nothing here waits for


class TestPace:
    """How long batches take against what the profile says: 0.1 ms a padded token."""

    @pytest.mark.parametrize(
        ("lengths", "took_ms", "pace"), [((4,), 0.4, 1.0), ((2, 4), 1.6, 2.0), ((8, 8), 0.8, 0.5)]
    )
    def test_the_pace_of_the_last_batch_travels_with_the_reply(
        self,
        replica: Replica,
        thread: HeldThread,
        monkeypatch: pytest.MonkeyPatch,
        *,
        lengths: tuple[int, ...],
        took_ms: float,
        pace: float,
    ) -> None:
        """Padding counts as work, as it does in the profile."""
        clock = {"s": 100.0}
        monkeypatch.setattr(replica_module.time, "monotonic", lambda: clock["s"])

        async def scenario() -> None:
            task = start(replica, texts_of(*lengths))
            await settle()
            clock["s"] += took_ms / 1000
            await thread.run_batch()
            assert (await task).state.pace == pytest.approx(pace)

        asyncio.run(scenario())

    def test_without_a_batch_the_profile_is_believed(self, replica: Replica) -> None:
        """A replica that has run nothing yet claims nothing."""
        assert replica.state.pace == 1.0
