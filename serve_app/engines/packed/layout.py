"""A batch as one row of int32 numbers, so that one copy brings all of it to the GPU.

With T tokens and N texts of room, the row holds

    ids        [T]      token ids, text after text
    positions  [T]      of each token within its text, from `first_position` up
    segments   [T]      the number of each token's text
    offsets    [N + 1]  where each text begins, and where the last one ends

Room may exceed the texts, as in a CUDA graph whose shapes are fixed: tokens beyond the last text belong
to segment N, which nobody reads, and texts beyond the last are empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.engines.base import TokenIds

Row = npt.NDArray[np.int32]
PER_TOKEN = 3  # ids, positions, segments


@dataclass(frozen=True, slots=True, order=True)
class Room:
    """Tokens and texts that a row has room for."""

    tokens: int
    texts: int

    @classmethod
    def of(cls, texts: Sequence[TokenIds]) -> Room:
        """As much as these texts need."""
        return cls(sum(map(len, texts)), len(texts))

    @property
    def numbers(self) -> int:
        """Length of the row."""
        return PER_TOKEN * self.tokens + self.texts + 1

    @property
    def parts(self) -> tuple[slice, slice, slice, slice]:
        """Where ids, positions, segments and offsets lie in the row."""
        ends = (*(self.tokens * n for n in range(PER_TOKEN + 1)), self.numbers)
        ids, positions, segments, offsets = map(slice, ends, ends[1:])
        return ids, positions, segments, offsets

    def holds(self, other: Room) -> bool:
        return self.tokens >= other.tokens and self.texts >= other.texts


def fill(row: Row, texts: Sequence[TokenIds], room: Room, *, first_position: int) -> None:
    """Write a batch into a row.

    Args:
        row: int32 [room.numbers], overwritten.
        texts: token ids, one text at least, each of one token at least.
        room: no smaller than the texts.
        first_position: of a text's first token: 0 for BERT, the padding's id + 1 for RoBERTa.
    """
    ids, positions, segments, offsets = (row[part] for part in room.parts)
    lengths = np.fromiter(map(len, texts), dtype=np.int32, count=len(texts))
    tokens = int(lengths.sum())
    offsets[0] = 0
    np.cumsum(lengths, out=offsets[1 : len(texts) + 1])
    offsets[len(texts) + 1 :] = tokens
    np.concatenate(texts, out=ids[:tokens])
    ids[tokens:] = 0  # some token: its state is computed, and belongs to no text
    segments[:tokens] = np.repeat(np.arange(len(texts), dtype=np.int32), lengths)
    segments[tokens:] = room.texts
    starts = np.repeat(offsets[: len(texts)], lengths)
    positions[:tokens] = np.arange(first_position, first_position + tokens) - starts
    positions[tokens:] = first_position


def split(lengths: Sequence[int], most_tokens: int) -> Iterator[slice]:
    """Cut a batch into runs of neighbours that hold at most so many tokens, or one text."""
    start = total = 0
    for end, length in enumerate(lengths):
        if end > start and total + length > most_tokens:
            yield slice(start, end)
            start, total = end, 0
        total += length
    yield slice(start, len(lengths))
