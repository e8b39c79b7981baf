"""How close a variant's vectors are to the FP32 checkpoint's, and whether batch-mates move them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from converters.checkpoint import Checkpoint
from converters.retrieval import Split, overlaps
from serve_app.engines.base import Engine, TokenIds, Vectors
from serve_app.engines.tokenization import Tokenizer
from serve_app.manifest import Drift, Fidelity, TaskScore
from serve_app.policy.batching import next_batch

FAR = -1.0  # the cosine of vectors that are not finite
DRIFT_TEXTS = 24
PADDED_TEXTS = 7  # and a longest one
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
        head=checkpoint.load_head(),
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

    A row that is not finite, or zero, counts as `FAR`, as far as can be: NaN would pass comparisons.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        return np.asarray(np.nan_to_num((x * y).sum(1) / norms, nan=FAR))


def measure(
    engine: Engine,
    reference: Vectors,
    texts: Sequence[TokenIds],
    *,
    tasks: dict[str, TaskScore] | None = None,
) -> Fidelity:
    """Compare an engine with the reference vectors of the same texts.

    Args:
        engine: the variant's.
        reference: FP32's vectors, [texts, dims].
        texts: the probe texts.
        tasks: scores on tasks that were asked for.
    """
    vectors = embed_sorted(engine, texts)
    close = cosines(vectors, reference)
    return Fidelity(
        mean=float(close.mean()),
        p1=float(np.percentile(close, 1)),
        min=float(close.min()),
        overlap=overlaps(vectors, reference, Split.by_length(texts)),
        drift=drift(engine, texts, in_batches=vectors),
        probe_texts=len(texts),
        tasks=tasks or {},
    )


def drift(engine: Engine, texts: Sequence[TokenIds], *, in_batches: Vectors) -> Drift:
    """How far company and padding move a text's vector from the one it has alone.

    Args:
        engine: the engine.
        texts: all probe texts; an even sample of them is tried.
        in_batches: their vectors from sorted batches.
    """
    sample = np.unique(np.linspace(0, len(texts) - 1, DRIFT_TEXTS).astype(int))
    tried = [texts[i] for i in sample]
    longest = max(texts, key=len)
    alone = np.concatenate([engine.embed([ids]) for ids in tried])
    beside = np.stack([engine.embed([ids, longest])[0] for ids in tried])
    wide = [
        engine.embed([*tried[i : i + PADDED_TEXTS], longest])[:-1]
        for i in range(0, len(tried), PADDED_TEXTS)
    ]
    again = np.concatenate([engine.embed([ids]) for ids in tried])
    return Drift(
        alone=_farthest(alone, again),
        sorted_batch=_farthest(alone, in_batches[sample]),
        beside_longest=_farthest(alone, beside),
        padded=_farthest(alone, np.concatenate(wide)),
    )


def _farthest(a: Vectors, b: Vectors) -> float:
    return float(max(0.0, 1 - cosines(a, b).min()))
