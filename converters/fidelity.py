"""How close a variant's vectors are to the FP32 checkpoint's, and whether batch-mates move them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from converters.checkpoint import Checkpoint
from serve_app.engines.base import Engine, TokenIds, Vectors
from serve_app.engines.tokenization import Tokenizer
from serve_app.manifest import Fidelity
from serve_app.policy.batching import next_batch

DRIFT_TEXTS = 24
BATCH_TOKENS = 512


def tokenize(checkpoint: Checkpoint, texts: Sequence[str]) -> list[TokenIds]:
    """Texts as the server will tokenise them."""
    tokenizer = Tokenizer(checkpoint.tokenizer_file, max_tokens=checkpoint.facts.max_tokens)
    return tokenizer.encode(texts).texts


def reference_engine(checkpoint: Checkpoint) -> Engine:
    """The FP32 checkpoint in PyTorch, which every variant is compared with."""
    from serve_app.engines.torch_engine import TorchEngine

    return TorchEngine(
        checkpoint.load_model(),
        pooling=checkpoint.facts.pooling,
        pad_id=checkpoint.tokenizer.pad_id,
        device="cpu",
    )


def embed_sorted(engine: Engine, texts: Sequence[TokenIds]) -> Vectors:
    """Vectors of many texts, [texts, dims], run in length-sorted batches as a replica does."""
    waiting = list(range(len(texts)))
    rows: list[Vectors | None] = [None] * len(texts)
    while waiting:
        positions = next_batch([len(texts[i]) for i in waiting], BATCH_TOKENS)
        batch = [waiting[p] for p in positions]
        for index, vector in zip(batch, engine.embed([texts[i] for i in batch]), strict=True):
            rows[index] = vector
        taken = set(batch)
        waiting = [i for i in waiting if i not in taken]
    return np.stack([row for row in rows if row is not None])


def cosines(a: Vectors, b: Vectors) -> npt.NDArray[np.float64]:
    """Row-wise cosine, in float64: 1 - cosine goes down to 1e-12.

    A row that is not finite, or zero, counts as -1, as far as can be: NaN would pass comparisons.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        return np.asarray(np.nan_to_num((x * y).sum(1) / norms, nan=-1.0))


def measure(engine: Engine, reference: Vectors, texts: Sequence[TokenIds]) -> Fidelity:
    """Compare an engine with the reference vectors of the same texts."""
    vectors = embed_sorted(engine, texts)
    close = cosines(vectors, reference)
    return Fidelity(
        mean=float(close.mean()),
        p1=float(np.percentile(close, 1)),
        min=float(close.min()),
        batch_drift=batch_drift(engine, texts, in_batches=vectors),
        probe_texts=len(texts),
    )


def batch_drift(engine: Engine, texts: Sequence[TokenIds], *, in_batches: Vectors) -> float:
    """Largest 1 - cosine between a text alone, in its sorted batch, and beside the longest text.

    Args:
        engine: the engine.
        texts: all probe texts; an even sample of them is tried.
        in_batches: their vectors from sorted batches.
    """
    longest = max(texts, key=len)
    sample = np.unique(np.linspace(0, len(texts) - 1, DRIFT_TEXTS).astype(int))
    alone = np.concatenate([engine.embed([texts[i]]) for i in sample])
    padded = np.stack([engine.embed([texts[i], longest])[0] for i in sample])
    nearest = np.minimum(cosines(alone, in_batches[sample]), cosines(alone, padded))
    return float(max(0.0, 1 - nearest.min()))
