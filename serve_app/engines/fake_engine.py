"""A deterministic engine without weights: for tests, and for load on everything but the model.

Its vectors depend on the token ids alone, and passing it through the engine contract test keeps it
an honest stand-in. An artifact with a pace makes it take a real engine's time, asleep: so a machine
with few cores can host many.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve_app.engines.base import Device, TokenIds, Vectors
from serve_app.manifest import Variant

PACE_NAME = "pace.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What a batch takes."""

    base_ms: float = 0.0
    per_token_ms: float = 0.0  # padding included


class FakeEngine:
    """Hashes token ids into unit vectors."""

    def __init__(self, *, dims: int, pace: Pace | None = None) -> None:
        self._dims = dims
        self._pace = pace
        self.batch_sizes: list[int] = []

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        self.batch_sizes.append(len(texts))
        if self._pace is not None:
            padded = len(texts) * max(map(len, texts))
            time.sleep((self._pace.base_ms + self._pace.per_token_ms * padded) / 1000)
        vectors = np.stack([self._vector(ids) for ids in texts])
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    def _vector(self, ids: TokenIds) -> Vectors:
        seed = np.random.SeedSequence(ids.tolist())
        return np.random.default_rng(seed).standard_normal(self._dims, dtype=np.float32)


def open_engine(
    folder: Path, variant: Variant, threads: int, device: Device, streams: int = 1
) -> FakeEngine:
    """Needs no file, and takes a pace from one; see `serve_app.engines.base.open_engine`."""
    del threads, device, streams
    file = folder / PACE_NAME
    pace = Pace(**json.loads(file.read_bytes())) if file.is_file() else None
    return FakeEngine(dims=variant.checkpoint.dims, pace=pace)
