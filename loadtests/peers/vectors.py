"""Whether a peer's vectors are the checkpoint's, and whether they move with their batch-mates."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadtests.errors import LoadTestError

Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]
MATES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Cosines: of texts asked alone to FP32's, and of a text alone to the same among others."""

    texts: int
    mean: float
    min: float
    mates_min: float

    def __str__(self) -> str:
        return (
            f"cosine to FP32: mean {self.mean:.5f}, min {self.min:.5f}; "
            f"the same text alone and among others: min {self.mates_min:.6f}"
        )


def check(embed: Embed, reference: Vectors, texts: Sequence[str]) -> Checked:
    """Ask for each text alone, then for all of them `MATES` a request.

    Args:
        embed: asks the peer in one request.
        reference: FP32's unit vectors of the texts.
        texts: what to ask.
    """
    alone = unit(np.concatenate([embed([text]) for text in texts]))
    together = unit(
        np.concatenate(
            [embed(texts[start : start + MATES]) for start in range(0, len(texts), MATES)]
        )
    )
    to_reference = (alone * reference).sum(axis=1)
    return Checked(
        texts=len(texts),
        mean=float(to_reference.mean()),
        min=float(to_reference.min()),
        mates_min=float((alone * together).sum(axis=1).min()),
    )


def unit(vectors: Vectors) -> Vectors:
    """Of unit length, in double precision for the cosines' last digits."""
    wide = vectors.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)  # type: ignore[no-any-return]


def read_vectors(body: bytes) -> Vectors:
    """Vectors of an answer in OpenAI's shape, in the order of the texts; base64 or numbers.

    Raises:
        LoadTestError: it is no such answer.
    """
    try:
        items = sorted(json.loads(body)["data"], key=lambda item: int(item["index"]))
        return np.stack([_vector(item["embedding"]) for item in items])
    except (ValueError, KeyError, TypeError) as error:
        raise LoadTestError(f"no vectors in the answer {body[:80]!r}: {error!r}") from error


def _vector(given: str | list[float]) -> Vectors:
    if isinstance(given, str):
        return np.frombuffer(base64.b64decode(given), dtype="<f4")
    return np.asarray(given, dtype=np.float32)
