"""filter → score → pick → Decision: the whole choice of a variant, on one page.

| hint | filter | pick |
|---|---|---|
| budget | p95 forecast fits what is left of it | highest fidelity, near-ties to the cheaper |
| quality floor | fidelity at or above the floor | the cheapest |
| quality best | the highest fidelity deployed | that one |
| both | both | highest fidelity, near-ties to the cheaper |
| variant | that one | that one |

Among equals the more loaded one that still fits is taken: the idle one is kept for a tighter budget.
The busier the cores, the higher their rent (`pool.py`): a request with a budget goes where its fidelity exceeds the
rent of its work most. Where no p95 fits, the safest of those whose median does; where none does, nowhere.

Forecasts are asked for one at a time, and only of variants that could still be the pick: from the most
faithful down, until none that follows would be worth more though it were idle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from serve_app.policy.decision import (
    FIDELITY_TIE,
    Candidate,
    Decision,
    Grounds,
    Limit,
    Rejected,
    Row,
    Terms,
)
from serve_app.policy.hint import Hint
from serve_app.policy.refusal import LEAST_RETRY_S, refuse

__all__ = [
    "FIDELITY_TIE",
    "LEAST_RETRY_S",
    "Candidate",
    "Decision",
    "Grounds",
    "Limit",
    "Rejected",
    "Terms",
    "decide",
]

PINNED_REASON = "pinned by the request"
BUDGET_REASON = "highest fidelity whose p95 forecast fits the budget"
RENT_REASON = "fits the budget, and a more faithful one would delay others more than it is worth"
BEST_REASON = "highest fidelity deployed"
FLOOR_REASON = "cheapest at or above the fidelity floor"


R = TypeVar("R", bound=Row)


def decide(
    hint: Hint, candidates: Sequence[Candidate], *, elapsed_ms: float, terms: Terms
) -> Decision:
    """Choose a variant for one request, all of whose forecasts are there.

    Args:
        hint: what the client asked, defaults applied.
        candidates: the deployed variants, one at least; a pinned variant is among them.
        elapsed_ms: what has passed of the budget since the request arrived.
        terms: what else holds.
    """
    fidelities = [c.fidelity for c in candidates]
    least, best = min(fidelities), max(fidelities)
    floor = fidelity_floor(hint, best)
    left_ms = time_left_ms(hint, terms, elapsed_ms=elapsed_ms)
    grounds = Grounds(hint, candidates, Limit(left_ms, hint.budget_ms is not None), floor)
    rows = sorted(candidates, key=_less_faithful)
    scale = least, best - least or 1.0
    chosen, reason, at_risk = choose(hint, rows, left_ms, floor, terms, scale)
    if chosen is None:
        return refuse(hint, rows, left_ms, floor, terms, grounds)
    return Decision(
        chosen=chosen, reason=reason, at_risk=at_risk, budget_ms=hint.budget_ms, grounds=grounds
    )


def _less_faithful(c: Candidate) -> float:
    return -c.fidelity


def fidelity_floor(hint: Hint, best: float) -> float:
    """The lowest fidelity that the hint allows, where the highest deployed is `best`."""
    quality = hint.quality
    if quality is None:
        return 0.0
    return best if quality.best else quality.floor


def time_left_ms(hint: Hint, terms: Terms, *, elapsed_ms: float) -> float:
    """The time that a request has; see `Limit`."""
    budget_ms = hint.budget_ms
    if budget_ms is None:
        return terms.max_wait_ms
    return (budget_ms - elapsed_ms - terms.reserve_ms) * terms.tightened


def choose(
    hint: Hint,
    rows: Sequence[R],
    left_ms: float,
    floor: float,
    terms: Terms,
    scale: tuple[float, float],
) -> tuple[R | None, str, bool]:
    """Filter, score and pick.

    Args:
        hint: what the client asked, defaults applied.
        rows: the deployed variants, the most faithful first.
        left_ms: see `time_left_ms`.
        floor: the least fidelity.
        terms: what else holds.
        scale: the lowest fidelity deployed, and by how much the highest exceeds it.

    Returns:
        The chosen one, or None; the reason; whether it may well be late.
    """
    pin, quality, whole = hint.variant, hint.quality, hint.budget_ms is not None
    if pin is not None:
        rows = [row for row in rows if row.variant == pin]
    if whole and pin is None and not terms.cheapest and not (quality is not None and quality.best):
        found, passed_over = _worth_most(rows, left_ms, floor, scale)
        if found is not None:
            return found, (RENT_REASON if passed_over else BUDGET_REASON) + terms.note, False
    else:
        found = _cheapest(rows, left_ms, floor, whole=whole)
        if found is not None:
            reason = BEST_REASON if quality is not None and quality.best else FLOOR_REASON
            return found, (PINNED_REASON if pin is not None else reason) + terms.note, False
    found = _safest(rows, left_ms if terms.sheds else math.inf, floor) if whole else None
    if found is None:
        return None, "", True
    p50_ms = found.p50_ms()
    fits = "fits" if p50_ms <= left_ms else "does not fit either"
    return (
        found,
        f"at risk: p95 does not fit, median forecast {p50_ms:.1f} ms {fits}{terms.note}",
        True,
    )


def _worth_most(
    rows: Sequence[R], left_ms: float, floor: float, scale: tuple[float, float]
) -> tuple[R | None, bool]:
    """Of those in time the one whose fidelity exceeds its price most, and whether that passes over a better one.

    All within `FIDELITY_TIE` of the best in time are worth the same: the cheaper wins, then the more
    loaded. A lesser one is preferred for its price only if it is in time whenever the better one is: else a larger
    budget, with which it is, would get less.
    """
    least, span = scale
    found, most, near, near_worth = None, 0.0, 0.0, 0.0
    for number, row in enumerate(rows):
        fidelity = row.fidelity
        if fidelity < floor:
            break
        if row.cold:
            continue
        if found is None:
            if row.p95_ms() > left_ms:
                continue
            near, near_worth = fidelity - FIDELITY_TIE, (fidelity - least) / span
            most = near_worth - row.price
        else:
            worth = near_worth if fidelity >= near else (fidelity - least) / span
            if worth < most:
                break  # and so are all that follow, whatever they cost
            beyond = worth - row.price
            if beyond < most or (beyond == most and not _is_before(row, found)):
                continue
            if row.p95_ms() > left_ms or _waits_longer(row, rows[:number]):
                continue
            most = beyond
        found = row
    return found, found is not None and found.fidelity < near


def _waits_longer(row: R, better: Sequence[R]) -> bool:
    """Whether one that is more faithful could be in time where it is not."""
    soonest_ms, beyond = row.soonest_ms(), row.fidelity + FIDELITY_TIE
    return any(
        other.soonest_ms() < soonest_ms
        for other in better
        if not other.cold and other.fidelity > beyond
    )


def _cheapest(rows: Sequence[R], left_ms: float, floor: float, *, whole: bool) -> R | None:
    """Of those in time the cheapest, of equals the more loaded."""
    found = None
    for row in rows:
        if row.fidelity < floor:
            break
        if row.cold or (found is not None and not _is_before(row, found)):
            continue
        if (row.p95_ms() if whole else row.wait_ms) <= left_ms:
            found = row
    return found


def _is_before(row: R, other: R) -> bool:
    """Whether it is the cheaper of two, or at equal costs the more loaded."""
    return row.cost < other.cost or (row.cost == other.cost and row.wait_ms > other.wait_ms)


def _safest(rows: Sequence[R], left_ms: float, floor: float) -> R | None:
    """No p95 fits: of those whose median does, the safest."""
    found, least_ms = None, 0.0
    for row in rows:
        if row.fidelity < floor:
            break
        if row.cold or row.p50_ms() > left_ms:
            continue
        p95_ms = row.p95_ms()
        if found is None or p95_ms < least_ms:
            found, least_ms = row, p95_ms
    return found
