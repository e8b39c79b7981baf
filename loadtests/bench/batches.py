"""How texts in hand are cut into batches, for engines without a server."""

from __future__ import annotations

from collections.abc import Sequence

ARRIVAL_BATCH = 16  # texts, as servers batch that do not look at lengths


def sorted_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Positions by length, cut so that a batch has at most so many padded tokens, one text at least."""
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        padded = (len(batches[-1]) + 1) * lengths[position] if batches else batch_tokens + 1
        if padded <= batch_tokens:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


def arrival_batches(count: int, *, size: int = ARRIVAL_BATCH) -> list[list[int]]:
    """Positions in order of arrival, so many a batch."""
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]
