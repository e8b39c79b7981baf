"""The inside of a variant replica: one engine, a thread for each of its streams, one greedy batcher.

While all streams run a batch, texts gather; the next batch is taken from all that gathered, as soon as
a stream is free. Nothing waits for a batch to fill, and no text waits behind one that arrived later for
longer than a batch. Texts whose caller has gone, or whose deadline has passed, never reach the engine.

The queue is bounded by those who send: a router has a few calls for each replica that it knows on their
way (`policy/batching.may_leave`), Serve lets 64 in at a time (`app.py`), and a call holds one batch or one text.
Ray is not known here: `app.py` wraps this class into a deployment.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from threading import Barrier

import numpy as np

from serve_app.calls import Call, Reply
from serve_app.engines.base import Engine, TokenIds, Vectors
from serve_app.errors import ArtifactError
from serve_app.manifest import Manifest, Profile
from serve_app.policy.batching import short_batches
from serve_app.policy.replica_state import ReplicaState
from serve_app.waiting import Text, Waiting, WaitingCall

WARM_UP_LENGTHS = (8, 16, 32, 64, 128, 256)


class Replica:
    """Answers calls with vectors. Use from one event loop."""

    def __init__(
        self,
        engine: Engine,
        manifest: Manifest,
        *,
        name: str,
        measured: Profile | None = None,
        streams: int = 1,
        host: str = "",
    ) -> None:
        """Warm the engine up and hold it to its manifest.

        Args:
            engine: ready, not in use elsewhere, opened for as many streams.
            manifest: what it promises.
            name: tells this replica from others of its variant.
            measured: its profile here, where the manifest's does not fit; each reply carries it.
            streams: batches that run side by side at most.
            host: tells whose cores it shares.

        Raises:
            ArtifactError: the engine's vectors have other dims than promised, or no unit length.
        """
        self._engine = engine
        self._name = name
        self._host = host
        self._dims = manifest.checkpoint.dims
        self._measured = short_batches(measured) if measured else None
        self._profile = self._measured or short_batches(manifest.profile)
        self._pace = 1.0
        self._queue = Waiting()
        self._streams = streams
        self._running: set[asyncio.Task[None] | None] = set()  # the streams at work
        self._threads: Executor = ThreadPoolExecutor(streams, thread_name_prefix="engine")
        self._warm_up(manifest)

    def _warm_up(self, manifest: Manifest) -> None:
        """Each stream's first runs allocate and compile; no request should pay for them."""
        longest = manifest.checkpoint.max_tokens
        together = Barrier(self._streams)  # each batch in all streams at once: none is passed over

        def embed(texts: list[TokenIds]) -> Vectors:
            together.wait()
            return self._engine.embed(texts)

        for length in [n for n in WARM_UP_LENGTHS if n <= longest] or [longest]:
            ids = np.full(length, manifest.tokenizer.pad_id, dtype=np.int32)
            for count in (1, max(1, self._profile.batch_tokens // length)):
                for vectors in self._threads.map(embed, [[ids] * count] * self._streams):
                    _require_promised(vectors, count, manifest)

    @property
    def state(self) -> ReplicaState:
        return ReplicaState(
            replica=self._name,
            queued_tokens=self._queue.tokens,
            pace=self._pace,
            measured=self._measured,
            host=self._host,
        )

    async def embed(self, call: Call) -> Reply:
        """Run a call's texts, among those of other calls, and wait for the last of them.

        Cancelling it takes what is still queued out of the engine's way.
        """
        arrived_s = time.monotonic()
        texts = call.texts()
        waiting = WaitingCall(
            vectors=np.empty((len(texts), self._dims), dtype=np.float32),
            missing=len(texts),
            done=asyncio.get_running_loop().create_future(),
        )
        deadlines_s = call.deadlines_s(arrived_s=arrived_s)
        for row, (ids, deadline_s) in enumerate(zip(texts, deadlines_s, strict=True)):
            self._queue.add(Text(ids, deadline_s, waiting, row))
        self._wake()
        await waiting.done
        finished_s = time.monotonic()
        started_s = waiting.started_s or finished_s
        return Reply(
            vectors=waiting.vectors.tobytes(),
            queue_ms=(started_s - arrived_s) * 1000,
            inference_ms=(finished_s - started_s) * 1000,
            state=self.state,
            dropped=tuple(waiting.dropped),
        )

    def _wake(self) -> None:
        """Have a stream take what waits, if one is free."""
        if self._queue.texts and len(self._running) < self._streams:
            self._running.add(asyncio.create_task(self._run()))

    async def _run(self) -> None:
        """One stream: batch after batch until nothing waits; what a batch leaves is the next stream's."""
        try:
            while self._queue.texts:
                now_s = time.monotonic()
                self._queue.sift(now_s)
                if self._queue.texts:
                    batch = self._queue.take(self._profile.batch_tokens)
                    self._wake()
                    await self._run_batch(batch, now_s)
        finally:
            self._running.discard(asyncio.current_task())

    async def _run_batch(self, batch: list[Text], now_s: float) -> None:
        """One batch through the engine; its vectors, or its failure, to its calls."""
        for text in batch:
            text.call.started_s = text.call.started_s or now_s
        try:
            vectors = await asyncio.get_running_loop().run_in_executor(
                self._threads, self._engine.embed, [t.ids for t in batch]
            )
            self._pace = self._paced(batch, took_ms=(time.monotonic() - now_s) * 1000)
            _deliver(batch, vectors)
        except Exception as error:  # whatever the runtime raises belongs to these calls
            _fail(batch, error)

    def _paced(self, batch: list[Text], *, took_ms: float) -> float:
        """Time of a batch / what the profile says, which counts padding to the longest text."""
        promised_ms = self._profile.fitted_ms(len(batch) * max(len(t.ids) for t in batch))
        return took_ms / promised_ms if promised_ms > 0 else 1.0


def _deliver(batch: list[Text], vectors: Vectors) -> None:
    for text, vector in zip(batch, vectors, strict=True):
        text.call.settle(text.row, vector)


def _fail(batch: list[Text], error: Exception) -> None:
    for text in batch:
        if not text.call.done.done():
            text.call.done.set_exception(error)


def _require_promised(vectors: Vectors, count: int, manifest: Manifest) -> None:
    """Raise ArtifactError unless they are so many unit vectors of the manifest's dims."""
    norms = np.linalg.norm(vectors, axis=1)
    expected = (count, manifest.checkpoint.dims)
    if vectors.shape != expected or not np.allclose(norms, 1, atol=1e-3):
        raise ArtifactError(
            f"{manifest.variant} promises unit vectors of {manifest.checkpoint.dims} dims, "
            f"and its engine gives shape {vectors.shape[1:]} with lengths up to {norms.max():.3f}"
        )
