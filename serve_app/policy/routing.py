"""filter → score → pick → Decision: the whole choice of a variant, on one page.

| hint | filter | pick |
|---|---|---|
| budget | p95 forecast fits what is left of it | highest fidelity, near-ties to the cheaper |
| quality floor | fidelity at or above the floor | the cheapest |
| quality best | the highest fidelity deployed | that one |
| both | both | highest fidelity, near-ties to the cheaper |
| variant | that one | that one |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from serve_app.policy.forecast import Forecast
from serve_app.policy.hint import Hint

FIDELITY_TIE = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A deployed variant, as one request sees it."""

    variant: str
    fidelity: float
    cost: float  # milliseconds per token in a full batch
    forecast: Forecast


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A variant that was not chosen, and why."""

    variant: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The chosen variant; or none (`chosen` is None), when waiting `retry_after_s` may help.

    `retry_after_s` is None for a decision that chose, and where no waiting would help;
    `refused_for` is the hint that could not be met, None without one.
    """

    chosen: Candidate | None
    reason: str
    at_risk: bool = False
    rejected: tuple[Rejected, ...] = ()
    budget_ms: float | None = None
    retry_after_s: float | None = None
    refused_for: Literal["quality", "latency_ms"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The time a request has: all of it up to the vectors, or, without a budget, only the wait.

    A long request without a budget may take long; it may not queue for ever.
    """

    left_ms: float
    whole: bool

    def median(self, c: Candidate) -> float:
        return c.forecast.p50_ms if self.whole else c.forecast.wait_ms

    def p95(self, c: Candidate) -> float:
        return c.forecast.p95_ms if self.whole else c.forecast.wait_ms


def decide(
    hint: Hint, candidates: Sequence[Candidate], *, elapsed_ms: float, max_wait_ms: float
) -> Decision:
    """Choose a variant for one request.

    Args:
        hint: what the client asked, defaults applied.
        candidates: the deployed variants, one at least; a pinned variant is among them.
        elapsed_ms: what has passed of the budget since the request arrived.
        max_wait_ms: the longest wait that a request without a budget is let in for.
    """
    allowed, rejected = _meet_quality(hint, candidates)
    if not allowed:
        return Decision(
            chosen=None,
            reason=_out_of_reach(hint, candidates),
            refused_for="quality",
            rejected=tuple(rejected),
            budget_ms=hint.budget_ms,
        )
    if hint.budget_ms is None:
        limit = Limit(left_ms=max_wait_ms, whole=False)
    else:
        limit = Limit(left_ms=hint.budget_ms - elapsed_ms, whole=True)
    in_time, late = _split(allowed, limit)
    at_risk = not in_time
    if in_time:
        chosen, reason = _pick(hint, in_time)
    else:
        hopeful = [c for c in allowed if limit.median(c) <= limit.left_ms]
        if not hopeful:
            return _refuse(hint, allowed, rejected + late, limit=limit)
        chosen = min(hopeful, key=lambda c: c.forecast.p95_ms)
        reason = f"at risk: median forecast {chosen.forecast.p50_ms:.1f} ms fits, p95 does not"
    rejected += [r for r in late if r.variant != chosen.variant]
    rejected += _not_picked(chosen, in_time)
    return Decision(
        chosen=chosen,
        reason=reason,
        at_risk=at_risk,
        rejected=tuple(rejected),
        budget_ms=hint.budget_ms,
    )


def fidelity_floor(hint: Hint, fidelities: Sequence[float]) -> float:
    """The lowest fidelity that the hint allows, given those of the deployed variants."""
    if hint.quality is None:
        return 0.0
    return max(fidelities) if hint.quality.best else hint.quality.floor


def _out_of_reach(hint: Hint, candidates: Sequence[Candidate]) -> str:
    fidelities = [c.fidelity for c in candidates]
    return (
        f"the asked fidelity is {fidelity_floor(hint, fidelities):.6f}, "
        f"the highest deployed {max(fidelities):.6f}"
    )


def _meet_quality(
    hint: Hint, candidates: Sequence[Candidate]
) -> tuple[list[Candidate], list[Rejected]]:
    """Filter by pin and quality."""
    floor = fidelity_floor(hint, [c.fidelity for c in candidates])
    allowed, rejected = [], []
    for c in candidates:
        if c.fidelity < floor:
            why = f"fidelity {c.fidelity:.6f} is below the floor {floor:.6f}"
            rejected.append(Rejected(variant=c.variant, reason=why))
        elif hint.variant is not None and c.variant != hint.variant:
            rejected.append(Rejected(variant=c.variant, reason=f"{hint.variant} is pinned"))
        else:
            allowed.append(c)
    return allowed, rejected


def _split(allowed: Iterable[Candidate], limit: Limit) -> tuple[list[Candidate], list[Rejected]]:
    """Filter by time: who fits at p95, and why the others do not."""
    in_time, late = [], []
    for c in allowed:
        if limit.p95(c) <= limit.left_ms:
            in_time.append(c)
        else:
            what = "p95 forecast" if limit.whole else "forecast wait"
            why = f"{what} {limit.p95(c):.1f} ms exceeds the {limit.left_ms:.1f} ms left"
            late.append(Rejected(variant=c.variant, reason=why))
    return in_time, late


def _pick(hint: Hint, in_time: Sequence[Candidate]) -> tuple[Candidate, str]:
    """Score and pick among those that fit."""
    cheapest_first = sorted(in_time, key=lambda c: c.cost)
    if hint.variant is not None:
        return cheapest_first[0], "pinned by the request"
    top = max(c.fidelity for c in in_time)
    if hint.quality and hint.quality.best:
        return cheapest_first[0], "highest fidelity deployed"
    if hint.budget_ms is None:
        return cheapest_first[0], "cheapest at or above the fidelity floor"
    near_top = (c for c in cheapest_first if c.fidelity >= top - FIDELITY_TIE)
    return next(near_top), "highest fidelity whose p95 forecast fits the budget"


def _not_picked(chosen: Candidate, in_time: Iterable[Candidate]) -> list[Rejected]:
    return [
        Rejected(variant=c.variant, reason=_why_not(c, chosen))
        for c in in_time
        if c.variant != chosen.variant
    ]


def _why_not(loser: Candidate, chosen: Candidate) -> str:
    if loser.cost >= chosen.cost:
        return f"costs {loser.cost / chosen.cost:.1f} times as much as {chosen.variant}"
    return f"fidelity {loser.fidelity:.6f}, {chosen.variant} has {chosen.fidelity:.6f} and fits"


def _refuse(
    hint: Hint, allowed: Sequence[Candidate], rejected: list[Rejected], *, limit: Limit
) -> Decision:
    """None can make it: say when the soonest could, or that none ever can."""
    able_when_idle = [c for c in allowed if limit.median(c) - c.forecast.wait_ms <= limit.left_ms]
    if able_when_idle:
        soonest_ms = min(limit.median(c) for c in able_when_idle) - limit.left_ms
        reason = "too much work is queued" + (" to meet the budget" if limit.whole else "")
        retry_after_s = soonest_ms / 1000
    else:
        fastest = min(allowed, key=lambda c: c.forecast.service_ms)
        reason = (
            f"{limit.left_ms:.2f} ms are left, and {fastest.variant}, the fastest allowed, "
            f"needs {fastest.forecast.service_ms:.1f} ms with nothing queued"
        )
        retry_after_s = None
    return Decision(
        chosen=None,
        reason=reason,
        rejected=tuple(rejected),
        budget_ms=hint.budget_ms,
        retry_after_s=retry_after_s,
        refused_for="latency_ms" if limit.whole else None,
    )
