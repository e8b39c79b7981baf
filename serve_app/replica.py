"""The inside of a variant replica: one engine, one thread that runs it, one greedy batcher.

While the engine runs a batch, texts gather; the next batch is taken from all that gathered. Nothing
waits for a batch to fill, and no text waits behind one that arrived later for longer than a batch.
Ray is not known here: `app.py` wraps this class into a deployment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from serve_app.engines.base import Engine, TokenIds, Vectors
from serve_app.errors import ArtifactError
from serve_app.manifest import Manifest, Profile
from serve_app.policy.batching import next_batch
from serve_app.policy.load import ReplicaState

WARM_UP_LENGTHS = (8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Call:
    """What crosses from router to replica: flat int32 token ids, and the length of each text."""

    ids: bytes
    lengths: bytes

    @classmethod
    def of(cls, texts: Sequence[TokenIds]) -> Call:
        lengths = np.fromiter(map(len, texts), dtype=np.int32, count=len(texts))
        return cls(ids=np.concatenate(texts).tobytes(), lengths=lengths.tobytes())

    @property
    def count(self) -> int:
        """Texts in the call."""
        return len(self.lengths) // np.dtype(np.int32).itemsize

    def texts(self) -> list[TokenIds]:
        ids = np.frombuffer(self.ids, dtype=np.int32)
        ends = np.cumsum(np.frombuffer(self.lengths, dtype=np.int32))
        return np.split(ids, ends[:-1])


@dataclass(frozen=True, slots=True)
class Reply:
    """What comes back: flat float32 vectors in the call's order, phase times, the replica's state."""

    vectors: bytes
    queue_ms: float  # from arrival at the replica to the first batch that holds a text of the call
    inference_ms: float  # from there to the end of the last such batch
    state: ReplicaState


@dataclass(eq=False, slots=True)
class _Waiting:
    """One call on its way through the engine."""

    vectors: Vectors
    missing: int
    done: asyncio.Future[None]
    started_s: float | None = None


@dataclass(eq=False, slots=True)
class _Text:
    ids: TokenIds
    call: _Waiting
    row: int


@dataclass(eq=False, slots=True)
class _Queue:
    """Texts in order of arrival."""

    texts: list[_Text] = field(default_factory=list)
    tokens: int = 0

    def add(self, text: _Text) -> None:
        self.texts.append(text)
        self.tokens += len(text.ids)

    def take(self, batch_tokens: int) -> list[_Text]:
        positions = next_batch([len(t.ids) for t in self.texts], batch_tokens)
        batch = [self.texts[i] for i in positions]
        taken = set(positions)
        self.texts = [t for i, t in enumerate(self.texts) if i not in taken]
        self.tokens -= sum(len(t.ids) for t in batch)
        return batch


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
        self._measured = measured
        self._batch_tokens = (measured or manifest.profile).batch_tokens
        self._queue = _Queue()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._running: asyncio.Task[None] | None = None
        _warm_up(engine, manifest, batch_tokens=self._batch_tokens)

    @property
    def state(self) -> ReplicaState:
        return ReplicaState(
            replica=self._name, queued_tokens=self._queue.tokens, measured=self._measured
        )

    async def embed(self, call: Call) -> Reply:
        """Run a call's texts, among those of other calls, and wait for the last of them."""
        arrived_s = time.monotonic()
        texts = call.texts()
        waiting = _Waiting(
            vectors=np.empty((len(texts), self._dims), dtype=np.float32),
            missing=len(texts),
            done=asyncio.get_running_loop().create_future(),
        )
        for row, ids in enumerate(texts):
            self._queue.add(_Text(ids, waiting, row))
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
        )

    async def _run(self) -> None:
        """Batch after batch until nothing waits."""
        loop = asyncio.get_running_loop()
        try:
            while self._queue.texts:
                batch = self._drop_abandoned(self._queue.take(self._batch_tokens))
                if not batch:
                    continue
                now_s = time.monotonic()
                for text in batch:
                    text.call.started_s = text.call.started_s or now_s
                try:
                    vectors = await loop.run_in_executor(
                        self._thread, self._engine.embed, [t.ids for t in batch]
                    )
                    _deliver(batch, vectors)
                except Exception as error:  # whatever the runtime raises belongs to these calls
                    _fail(batch, error)
        finally:
            self._running = None

    @staticmethod
    def _drop_abandoned(batch: list[_Text]) -> list[_Text]:
        """Texts whose caller was cancelled or has failed need no vector."""
        return [t for t in batch if not t.call.done.done()]


def _deliver(batch: list[_Text], vectors: Vectors) -> None:
    for text, vector in zip(batch, vectors, strict=True):
        text.call.vectors[text.row] = vector
        text.call.missing -= 1
        if text.call.missing == 0 and not text.call.done.done():
            text.call.done.set_result(None)


def _fail(batch: list[_Text], error: Exception) -> None:
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
