"""The ways in which an engine without a server is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ENGINE = "engine"  # the subject of their rows
Batches = Literal["one a call", "sorted", "arrival order"]


@dataclass(frozen=True, slots=True)
class Mode:
    """How texts are batched, and whether their tokenising counts."""

    batches: Batches
    tokenises: bool


ONE, ONE_TEXT = "one a call", "one a call, tokenising"
SORTED, SORTED_TEXT = "sorted", "sorted, tokenising"
ARRIVAL = "arrival order"
MODES = {
    ONE: Mode("one a call", tokenises=False),
    ONE_TEXT: Mode("one a call", tokenises=True),
    SORTED: Mode("sorted", tokenises=False),
    SORTED_TEXT: Mode("sorted", tokenises=True),
    ARRIVAL: Mode("arrival order", tokenises=False),
}
