"""What a request is told that no variant can have: when to come back, or that waiting would not help."""

from __future__ import annotations

import math
from collections.abc import Sequence

from serve_app.policy.decision import Decision, Grounds, Record, Row, Terms
from serve_app.policy.hint import Hint

LEAST_RETRY_S = 0.2
WAIT_REASON = "too much work is queued"
QUEUED_REASON = "too much work is queued to meet the budget"


def refuse(
    hint: Hint,
    rows: Sequence[Row],
    left_ms: float,
    floor: float,
    terms: Terms,
    record: Grounds | Record,
) -> Decision:
    """None was chosen: say when the soonest could make it, or that none ever can."""
    whole, pin, best = hint.budget_ms is not None, hint.variant, rows[0].fidelity
    if pin is not None:
        rows = [row for row in rows if row.variant == pin]
    fastest, soonest_ms = _fastest_and_soonest(rows, left_ms, floor, whole=whole)
    if fastest is None:
        return Decision(
            chosen=None,
            reason=f"the asked fidelity is {floor:.6f}, the highest deployed {best:.6f}",
            refused_for="quality",
            budget_ms=hint.budget_ms,
            grounds=record,
        )
    retry_after_s = None
    if soonest_ms < math.inf:
        more_ms = soonest_ms - left_ms
        reason = QUEUED_REASON if whole else WAIT_REASON
        retry_after_s = max(more_ms / 1000, LEAST_RETRY_S)
    else:
        reason = (
            f"{left_ms:.2f} ms are left, and {fastest.variant}, the fastest allowed, "
            f"needs {fastest.service_ms:.1f} ms with nothing queued"
        )
    return Decision(
        chosen=None,
        reason=reason + terms.note,
        budget_ms=hint.budget_ms,
        retry_after_s=retry_after_s,
        refused_for="latency_ms" if whole else None,
        grounds=record,
    )


def _fastest_and_soonest(
    rows: Sequence[Row], left_ms: float, floor: float, *, whole: bool
) -> tuple[Row | None, float]:
    """Of those allowed the one that serves fastest; and the least p95 of those able to make it when idle."""
    fastest, soonest_ms = None, math.inf
    for row in rows:
        if row.fidelity < floor:
            break
        if row.cold:
            continue
        p95_ms, service_ms = row.p95_ms(), row.service_ms
        if fastest is None or service_ms < fastest.service_ms:
            fastest = row
        if not whole:
            p95_ms, service_ms = row.wait_ms, 0.0
        if service_ms <= left_ms and p95_ms < soonest_ms:
            soonest_ms = p95_ms
    return fastest, soonest_ms
