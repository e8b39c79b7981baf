"""The inside of a variant replica: one engine, one thread that runs it, one greedy batcher.

While the engine runs a batch, texts gather; the next batch is taken from all that gathered. Nothing
waits for a batch to fill, and no text waits behind one that arrived later for longer than a batch.
Texts whose caller has gone, or whose deadline has passed, never reach the engine.

The queue is bounded by those who send: a router has two calls for each replica that it knows on their
way (`dispatch.py`), Serve lets 64 in at a time (`app.py`), and a call holds one batch or one text.
Ray is not known here: `app.py` wraps this class into a deployment.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from serve_app.calls import Call, Reply
from serve_app.engines.base import Engine, Vectors
from serve_app.errors import ArtifactError
from serve_app.manifest import Manifest, Profile
from serve_app.policy.batching import short_batches
from serve_app.policy.load import ReplicaState
from serve_app.waiting import Text, Waiting, WaitingCall

WARM_UP_LENGTHS = (8, 16, 32, 64, 128, 256)


class Replica:
    """Answers calls with vectors. Use from one event loop."""

    def __init__(
        self, engine: Engine, manifest: Manifest, *, name: str, measured: Profile | None = None
    ) -> None:
        """Warm the engine up and hold it to its manifest.

        Args:
            engine: ready, not in use elsewhere.
            manifest: what it promises.
            name: tells this replica from others of its variant.
            measured: its profile here, where the manifest's does not fit; each reply carries it.

        Raises:
            ArtifactError: the engine's vectors have other dims than promised, or no unit length.
        """
        self._engine = engine
        self._name = name
        self._dims = manifest.checkpoint.dims
        self._measured = short_batches(measured) if measured else None
        self._profile = self._measured or short_batches(manifest.profile)
        self._pace = 1.0
        self._queue = Waiting()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._running: asyncio.Task[None] | None = None
        _warm_up(engine, manifest, batch_tokens=self._profile.batch_tokens)

    @property
    def state(self) -> ReplicaState:
        return ReplicaState(
            replica=self._name,
            queued_tokens=self._queue.tokens,
            pace=self._pace,
            measured=self._measured,
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
        if self._running is None:
            self._running = asyncio.create_task(self._run())
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

    async def _run(self) -> None:
        """Batch after batch until nothing waits."""
        try:
            while self._queue.texts:
                now_s = time.monotonic()
                self._queue.sift(now_s)
                if self._queue.texts:
                    await self._run_batch(self._queue.take(self._profile.batch_tokens), now_s)
        finally:
            self._running = None

    async def _run_batch(self, batch: list[Text], now_s: float) -> None:
        """One batch through the engine; its vectors, or its failure, to its calls."""
        for text in batch:
            text.call.started_s = text.call.started_s or now_s
        try:
            vectors = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._engine.embed, [t.ids for t in batch]
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


def _warm_up(engine: Engine, manifest: Manifest, *, batch_tokens: int) -> None:
    """First runs allocate and compile; no request should pay for them."""
    longest = manifest.checkpoint.max_tokens
    for length in [n for n in WARM_UP_LENGTHS if n <= longest] or [longest]:
        count = max(1, batch_tokens // length)
        ids = np.full(length, manifest.tokenizer.pad_id, dtype=np.int32)
        for texts in ([ids], [ids] * count):
            vectors = engine.embed(texts)
    norms = np.linalg.norm(vectors, axis=1)
    expected = (len(texts), manifest.checkpoint.dims)
    if vectors.shape != expected or not np.allclose(norms, 1, atol=1e-3):
        raise ArtifactError(
            f"{manifest.variant} promises unit vectors of {manifest.checkpoint.dims} dims, "
            f"and its engine gives shape {vectors.shape[1:]} with lengths up to {norms.max():.3f}"
        )
