"""The arithmetic of a benchmark: order of a round, medians over rounds, ratios of rounds. Standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def rotated(items: Sequence[Item], turns: int) -> list[Item]:
    """The items from another one on each round, so that none is always first or after the same one."""
    turns %= max(len(items), 1)
    return [*items[turns:], *items[:turns]]


def percentile(values: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def median(values: Sequence[float | None]) -> float | None:
    """Of those that are there; None of nothing."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def ratio(numerator: dict[int, float | None], denominator: dict[int, float | None]) -> float | None:
    """The median over rounds of the ratio within a round: a slow minute touches both sides alike."""
    ratios = [
        above / below
        for number, above in numerator.items()
        if above is not None and (below := denominator.get(number))
    ]
    return median(ratios)


def difference(left: dict[int, float | None], right: dict[int, float | None]) -> float | None:
    """The median over rounds of the difference within a round."""
    found = [
        mine - other
        for number, mine in left.items()
        if mine is not None and (other := right.get(number)) is not None
    ]
    return median(found)
