"""What a client asks for: a latency budget, a quality floor, a pinned variant, or nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from serve_app.errors import BadRequest, shown

NAMED_FLOORS = {"balanced": 0.99, "fast": 0.0}
BEST = "best"
QUALITY_HELP = "'best', 'balanced', 'fast' or a fidelity floor from 0 to 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """A fidelity floor; `best` asks for strictly the highest fidelity deployed instead."""

    floor: float = 0.0
    best: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """The three hints of a request; None where the client did not send one."""

    budget_ms: float | None = None
    quality: Quality | None = None
    variant: str | None = None

    def or_default(self, default: Hint) -> Hint:
        """The default where this request brought no hint at all; it pins none."""
        if self.budget_ms is None and self.quality is None and self.variant is None:
            return default if default.variant is None else replace(default, variant=None)
        return self


def parse_budget_ms(value: object, *, param: str) -> float:
    """A latency budget in milliseconds, finite and above 0.

    Raises:
        BadRequest: names the field and the value.
    """
    number = _number(value)
    if number is None or not math.isfinite(number) or number <= 0:
        raise BadRequest(
            f"{param} must be a number of milliseconds above 0, got {shown(value)}", param=param
        )
    return number


def parse_quality(value: object, *, param: str) -> Quality:
    """A named quality or a fidelity floor.

    Raises:
        BadRequest: names the field and the value.
    """
    if value == BEST:
        return Quality(best=True)
    if isinstance(value, str) and value in NAMED_FLOORS:
        return Quality(floor=NAMED_FLOORS[value])
    floor = _number(value)
    if floor is None or not 0 <= floor <= 1:
        raise BadRequest(f"{param} must be {QUALITY_HELP}, got {shown(value)}", param=param)
    return Quality(floor=floor)


def number_or_text(text: str) -> float | str:
    """Headers and command lines carry numbers as text."""
    try:
        return float(text)
    except ValueError:
        return text


def _number(value: object) -> float | None:
    """A JSON number; None for all else, booleans and numbers beyond any float too."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
