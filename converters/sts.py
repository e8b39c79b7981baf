"""Semantic similarity: does the cosine of two sentences rank pairs as people do?"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serve_app.errors import ConversionError

LEAST_PAIRS = 2  # to be ranked
COLUMNS = ("genre", "score", "a", "b")


@dataclass(frozen=True, slots=True)
class Pairs:
    """Sentence pairs with the similarity that people gave them."""

    a: list[str]
    b: list[str]
    scores: list[float]


def read_sts(file: Path) -> Pairs:
    """Read tab-separated genre, score, sentence, sentence; no header, no quoting.

    Raises:
        ConversionError: names the file and the line.
    """
    pairs = Pairs([], [], [])
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            for number, row in enumerate(rows, 1):
                _add(pairs, row, where=f"{file}, line {number}")
    except OSError as error:
        raise ConversionError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConversionError(f"{file}: not UTF-8 ({error.reason})") from error
    if len(pairs.scores) < LEAST_PAIRS:
        raise ConversionError(f"{file}: fewer than two pairs")
    return pairs


def _add(pairs: Pairs, row: Sequence[str], *, where: str) -> None:
    try:
        _, score, a, b = row
        pairs.scores.append(float(score))
    except ValueError as error:
        raise ConversionError(f"{where}: not {', '.join(COLUMNS)} between tabs") from error
    pairs.a.append(a)
    pairs.b.append(b)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation ×100, ties ranked by their mean."""
    return 100 * float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    _, group, sizes = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(sizes) - (sizes - 1) / 2)[group], dtype=np.float64)
