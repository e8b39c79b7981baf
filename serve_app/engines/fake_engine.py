"""A deterministic engine without weights: for tests, and for load on everything but the model.

Its vectors depend on the token ids alone, and passing it through the engine contract test keeps it
an honest stand-in.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from serve_app.engines.base import Device, TokenIds, Vectors
from serve_app.manifest import Variant


class FakeEngine:
    """Hashes token ids into unit vectors."""

    def __init__(self, *, dims: int) -> None:
        self._dims = dims
        self.batch_sizes: list[int] = []

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        self.batch_sizes.append(len(texts))
        vectors = np.stack([self._vector(ids) for ids in texts])
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    def _vector(self, ids: TokenIds) -> Vectors:
        seed = np.random.SeedSequence(ids.tolist())
        return np.random.default_rng(seed).standard_normal(self._dims, dtype=np.float32)


def open_engine(folder: Path, variant: Variant, threads: int, device: Device) -> FakeEngine:
    """Needs no file; see `serve_app.engines.base.open_engine`."""
    del folder, threads, device
    return FakeEngine(dims=variant.checkpoint.dims)
