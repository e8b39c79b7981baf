"""The inside of a replica: texts gather while the engine runs, and each caller gets its own vectors."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app import replica as replica_module
from serve_app.calls import Call, Reply
from serve_app.engines.base import TokenIds, Vectors
from serve_app.engines.fake_engine import FakeEngine
from serve_app.errors import ArtifactError
from serve_app.manifest import Manifest, read_manifest
from serve_app.policy.load import ReplicaState
from serve_app.replica import Replica

DIMS = 8
BATCH_TOKENS = 64  # the artifact's

Scenario = Coroutine[Any, Any, None]


class HeldThread(Executor):
    """In the place of the engine's thread: holds each batch until the test lets it run."""

    def __init__(self, **_: object) -> None:
        self.held: list[tuple[Future[Vectors], Callable[..., Vectors], list[TokenIds]]] = []

    def submit(self, embed: Any, texts: list[TokenIds]) -> Future[Any]:  # type: ignore[override]
        future: Future[Vectors] = Future()
        self.held.append((future, embed, texts))
        return future

    async def run_batch(self) -> list[list[int]]:
        """Run the batch that is held; its texts, as the engine got them."""
        await _settle()
        ((future, embed, texts),) = self.held
        self.held.clear()
        try:
            future.set_result(embed(texts))
        except Exception as error:
            future.set_exception(error)
        await _settle()
        return [ids.tolist() for ids in texts]


async def _settle() -> None:
    """Let everything run that can run without the engine."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def manifest(artifacts: Path) -> Manifest:
    return read_manifest(artifacts / "fake-int8")


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(dims=DIMS)


@pytest.fixture
def replica(engine: FakeEngine, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> Replica:
    monkeypatch.setattr(replica_module, "ThreadPoolExecutor", HeldThread)
    return Replica(engine, manifest, name="r1")


@pytest.fixture
def thread(replica: Replica) -> HeldThread:
    assert isinstance(replica._thread, HeldThread)
    return replica._thread


def _ids(*lengths: int) -> list[TokenIds]:
    """Texts of these lengths, each with token ids of its own."""
    return [np.arange(10 * i, 10 * i + n, dtype=np.int32) for i, n in enumerate(lengths, 1)]


def _start(replica: Replica, texts: Sequence[TokenIds]) -> asyncio.Task[Reply]:
    return asyncio.create_task(replica.embed(Call.of(texts)))


def _vectors(reply: Reply) -> Vectors:
    return np.frombuffer(reply.vectors, dtype=np.float32).reshape(-1, DIMS)


def _expected(texts: Sequence[TokenIds]) -> Vectors:
    return FakeEngine(dims=DIMS).embed(texts)


def test_a_call_carries_its_texts_unchanged() -> None:
    """Token ids and their borders survive the way from router to replica."""
    texts = _ids(3, 1, 7)
    back = Call.of(texts).texts()
    assert [ids.tolist() for ids in back] == [ids.tolist() for ids in texts]
    assert all(ids.dtype == np.int32 for ids in back)


def test_a_call_is_four_bytes_a_token() -> None:
    """Flat int32 ids: what crosses between processes is small."""
    call = Call.of(_ids(3, 1))
    assert (len(call.ids), len(call.lengths), len(call.left_ms)) == (4 * 4, 4 * 2, 4 * 2)


def test_a_call_says_how_long_each_text_is_wanted() -> None:
    """On the receiver's clock; for ever where nothing is said."""
    assert Call.of(_ids(3, 1), [250.0, math.inf]).deadlines_s(arrived_s=7.0) == [7.25, math.inf]
    assert Call.of(_ids(3, 1)).deadlines_s(arrived_s=7.0) == [math.inf] * 2


def test_vectors_come_back_in_the_calls_order(replica: Replica, thread: HeldThread) -> None:
    """Batches are sorted by length; the caller never notices."""
    texts = _ids(9, 2, 5)

    async def scenario() -> None:
        task = _start(replica, texts)
        assert [len(ids) for ids in await thread.run_batch()] == [2, 5, 9]
        np.testing.assert_array_equal(_vectors(await task), _expected(texts))

    asyncio.run(scenario())


def test_texts_gather_while_the_engine_runs(replica: Replica, thread: HeldThread) -> None:
    """The first call starts at once, alone; the calls that come meanwhile run together."""
    first, second, third = _ids(3), _ids(4, 6), _ids(5)

    async def scenario() -> None:
        tasks = [_start(replica, first)]
        await _settle()
        tasks += [_start(replica, second), _start(replica, third)]
        assert [len(ids) for ids in await thread.run_batch()] == [3]
        assert tasks[0].done()
        assert not tasks[1].done()
        assert [len(ids) for ids in await thread.run_batch()] == [4, 5, 6]
        for task, texts in zip(tasks, [first, second, third], strict=True):
            np.testing.assert_array_equal(_vectors(await task), _expected(texts))
        assert thread.held == []

    asyncio.run(scenario())


def test_batches_stay_within_the_padded_tokens(replica: Replica, thread: HeldThread) -> None:
    """A long call runs in several length-sorted batches, the oldest text in the first."""
    texts = _ids(16, 4, 16, 4, 16, 16, 4, 16)

    async def scenario() -> None:
        task = _start(replica, texts)
        batches = []
        while not task.done():
            batches.append([len(ids) for ids in await thread.run_batch()])
        assert batches == [[4, 4, 4, 16], [16, 16, 16, 16]]
        assert all(len(b) * max(b) <= BATCH_TOKENS for b in batches)
        np.testing.assert_array_equal(_vectors(await task), _expected(texts))

    asyncio.run(scenario())


def test_no_call_starves(replica: Replica, thread: HeldThread) -> None:
    """A long text runs in the very next batch, however many short ones keep arriving."""

    async def scenario() -> None:
        _start(replica, _ids(1))
        await _settle()
        long = _start(replica, _ids(64))
        newer = [_start(replica, _ids(1)) for _ in range(3)]
        await thread.run_batch()
        newer += [_start(replica, _ids(1)) for _ in range(3)]
        await thread.run_batch()
        assert long.done()
        await thread.run_batch()
        await asyncio.gather(*newer)

    asyncio.run(scenario())


def test_the_reply_tells_the_replicas_state(replica: Replica, thread: HeldThread) -> None:
    """What waits behind a call travels back with it; an idle replica has nothing queued."""

    async def scenario() -> None:
        first = _start(replica, _ids(3))
        await _settle()
        second = _start(replica, _ids(4, 5))
        await _settle()
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
        return [await replica.embed(Call.of(_ids(8, 8, 8))) for _ in range(2)]

    assert [reply.state.measured for reply in asyncio.run(scenario())] == [own, own]
    assert engine.batch_sizes == [2, 1, 2, 1]


def test_phase_times_split_the_calls_time(
    replica: Replica, thread: HeldThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queue is arrival to first batch, inference from there to the end of the last one."""
    clock = {"s": 100.0}
    monkeypatch.setattr(replica_module.time, "monotonic", lambda: clock["s"])

    async def scenario() -> None:
        _start(replica, _ids(1))
        await _settle()
        task = _start(replica, _ids(64, 64))
        await _settle()
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
            before = _start(replica, _ids(2))
            await _settle()
            failed = [_start(replica, bad), _start(replica, _ids(1))]
            await thread.run_batch()
            after = _start(replica, _ids(3))  # arrives while the batch that fails runs
            await thread.run_batch()
            await thread.run_batch()
            outcomes = await asyncio.gather(*failed, return_exceptions=True)
            assert [str(outcome) for outcome in outcomes] == ["cannot embed a 13"] * 2
            np.testing.assert_array_equal(_vectors(await before), _expected(_ids(2)))
            np.testing.assert_array_equal(_vectors(await after), _expected(_ids(3)))

        asyncio.run(scenario())

    def test_the_rest_of_a_failed_call_is_not_run(
        self, replica: Replica, thread: HeldThread
    ) -> None:
        """A call whose first batch failed has nobody to give the second one's vectors to."""
        bad = [np.full(64, 13, dtype=np.int32), *_ids(64)]

        async def scenario() -> None:
            task = _start(replica, bad)
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
            task = _start(replica, _ids(2, 2))
            await thread.run_batch()
            return task.done()

        assert asyncio.run(scenario())


def test_a_cancelled_callers_text_is_not_embedded(replica: Replica, thread: HeldThread) -> None:
    """Who has gone costs no engine time; who waits beside them is served."""

    async def scenario() -> None:
        first = _start(replica, _ids(1))
        await _settle()
        gone, waits = _start(replica, _ids(2)), _start(replica, _ids(3))
        await _settle()
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
        first = _start(replica, _ids(1))
        await _settle()
        gone = _start(replica, _ids(2))
        await _settle()
        gone.cancel()
        await thread.run_batch()
        await first
        assert (thread.held, replica.state.queued_tokens) == ([], 0)
        last = _start(replica, _ids(3))
        await thread.run_batch()
        np.testing.assert_array_equal(_vectors(await last), _expected(_ids(3)))

    asyncio.run(scenario())


def test_cancelled_texts_leave_the_queue(replica: Replica, thread: HeldThread) -> None:
    """What a caller that left had queued counts no more once the next batch is taken."""

    async def scenario() -> None:
        first = _start(replica, _ids(1))
        await _settle()
        gone = _start(replica, _ids(*[16] * 10))
        waits = [_start(replica, _ids(16, 16, 16, 16)) for _ in range(2)]
        await _settle()
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
        texts = _ids(2, 3, 4)

        async def scenario() -> None:
            first = _start(replica, _ids(1))
            await _settle()
            task = self._start(replica, texts, 500, 501, float("inf"))
            await _settle()
            clock["s"] = 100.5
            await thread.run_batch()
            assert [len(ids) for ids in await thread.run_batch()] == [3, 4]
            reply = await task
            assert reply.dropped == (0,)
            assert np.isnan(_vectors(reply)[0]).all()
            np.testing.assert_array_equal(_vectors(reply)[1:], _expected(texts)[1:])
            assert (await first).dropped == ()

        asyncio.run(scenario())

    def test_a_call_of_late_texts_only_is_answered_without_the_engine(
        self, replica: Replica, thread: HeldThread, clock: dict[str, float]
    ) -> None:
        """Nothing runs for it, and what is queued behind it does not wait."""

        async def scenario() -> None:
            first = _start(replica, _ids(1))
            await _settle()
            late, next_one = self._start(replica, _ids(2, 3), 1, 1), _start(replica, _ids(4))
            await _settle()
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
            reply = await self._start(replica, _ids(2), left_ms)
            assert reply.dropped == (0,)
            assert thread.held == []

        asyncio.run(scenario())


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
            task = _start(replica, _ids(*lengths))
            await _settle()
            clock["s"] += took_ms / 1000
            await thread.run_batch()
            assert (await task).state.pace == pytest.approx(pace)

        asyncio.run(scenario())

    def test_without_a_batch_the_profile_is_believed(self, replica: Replica) -> None:
        """A replica that has run nothing yet claims nothing."""
        assert replica.state.pace == 1.0


def test_the_engine_is_warmed_up_before_the_first_call(
    replica: Replica, engine: FakeEngine
) -> None:
    """Each length up to the model's limit runs alone and as a full batch, so no request pays."""
    assert replica.state.queued_tokens == 0
    assert engine.batch_sizes == [1, BATCH_TOKENS // 8, 1, BATCH_TOKENS // 16]


class Long(FakeEngine):
    """Vectors of length 2."""

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        return 2 * super().embed(texts)


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        (FakeEngine(dims=DIMS - 1), r"shape \(7,\)"),
        (FakeEngine(dims=2 * DIMS), r"shape \(16,\)"),
        (Long(dims=DIMS), r"lengths up to 2\.000"),
    ],
)
def test_an_engine_that_breaks_its_manifest_is_refused_at_start(
    engine: FakeEngine, manifest: Manifest, told: str
) -> None:
    """Other dims or no unit length: the variant, the promise and what came are named."""
    with pytest.raises(ArtifactError, match=f"fake-int8 promises unit vectors of 8 dims.*{told}"):
        Replica(engine, manifest, name="r1")


def test_a_model_of_very_short_texts_starts(engine: FakeEngine, manifest: Manifest) -> None:
    """A limit below the shortest warm-up length is a limit like any other."""
    short = replace(manifest, checkpoint=replace(manifest.checkpoint, max_tokens=7))
    assert Replica(engine, short, name="r1").state.queued_tokens == 0


def test_the_engine_runs_on_a_thread_of_its_own(engine: FakeEngine, manifest: Manifest) -> None:
    """With the real thread in place, many calls at once all get their own vectors."""
    replica = Replica(engine, manifest, name="r1")
    calls = [[np.array([i, j], dtype=np.int32) for j in range(1 + i % 5)] for i in range(20)]

    async def scenario() -> list[Reply]:
        return await asyncio.gather(*(replica.embed(Call.of(texts)) for texts in calls))

    for reply, texts in zip(asyncio.run(scenario()), calls, strict=True):
        np.testing.assert_array_equal(_vectors(reply), _expected(texts))
