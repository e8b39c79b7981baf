"""filter → score → pick → Decision: the whole choice of a variant, on one page.

| hint | filter | pick |
|---|---|---|
| budget | p95 forecast fits what is left of it | highest fidelity, near-ties to the cheaper |
| quality floor | fidelity at or above the floor | the cheapest |
| quality best | the highest fidelity deployed | that one |
| both | both | highest fidelity, near-ties to the cheaper |
| variant | that one | that one |

Among equals the more loaded one that still fits is taken: the idle one is kept for a tighter budget.
A decision is made for every request, its explanation read by few: `Decision.rejected` is worked out
when asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from serve_app.policy.forecast import Forecast
from serve_app.policy.hint import Hint

FIDELITY_TIE = 0.001


class Candidate(NamedTuple):
    """A deployed variant, as one request sees it."""

    variant: str
    fidelity: float
    cost: float  # milliseconds per token in a full batch
    forecast: Forecast
    cold: bool = False  # no replica is up: it cannot be chosen, only wished for


class Rejected(NamedTuple):
    """A variant that was not chosen, and why."""

    variant: str
    reason: str


class Limit(NamedTuple):
    """The time a request has: all of it up to the vectors, or, without a budget, only the wait.

    A long request without a budget may take long; it may not queue for ever.
    """

    left_ms: float
    whole: bool

    def median(self, c: Candidate) -> float:
        return c.forecast.p50_ms if self.whole else c.forecast.wait_ms

    def p95(self, c: Candidate) -> float:
        return c.forecast.p95_ms if self.whole else c.forecast.wait_ms

    def met_by(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those that fit at p95."""
        left_ms = self.left_ms
        if self.whole:
            return [c for c in candidates if c.forecast.p95_ms <= left_ms]
        return [c for c in candidates if c.forecast.wait_ms <= left_ms]


class Terms(NamedTuple):
    """What holds for a request beside its hint and the variants' load.

    `strict` and `tightened` come from `brownout.py` and `fairness.py`, and are off in quiet times.
    """

    max_wait_ms: float  # the longest wait that a request without a budget is let in for
    reserve_ms: float = 0.0  # of each budget: what encoding and sending the answer takes
    strict: bool = False  # p95 must fit: nothing is let in at risk
    tightened: float = 1.0  # the share of the time left that a request may fill
    cheapest: bool = False  # of those in time, the cheapest rather than the best
    note: str = ""  # why any of these hold, added to the reason


class Grounds(NamedTuple):
    """What a decision was made from."""

    hint: Hint
    candidates: Sequence[Candidate]
    limit: Limit
    floor: float


@dataclass(slots=True, kw_only=True)  # frozen would take three times as long to make
class Decision:
    """The chosen variant; or none (`chosen` is None), when waiting `retry_after_s` may help.

    `retry_after_s` is None for a decision that chose, and where no waiting would help;
    `refused_for` is the hint that could not be met, None without one.
    """

    chosen: Candidate | None
    reason: str
    at_risk: bool = False
    budget_ms: float | None = None
    retry_after_s: float | None = None
    refused_for: Literal["quality", "latency_ms"] | None = None
    grounds: Grounds = field(repr=False)

    @property
    def rejected(self) -> list[Rejected]:
        """Every variant that was not chosen, and why."""
        return [
            Rejected(c.variant, _why_not(c, self.chosen, self.grounds))
            for c in self.grounds.candidates
            if c is not self.chosen
        ]


def decide(
    hint: Hint, candidates: Sequence[Candidate], *, elapsed_ms: float, terms: Terms
) -> Decision:
    """Choose a variant for one request.

    Args:
        hint: what the client asked, defaults applied.
        candidates: the deployed variants, one at least; a pinned variant is among them.
        elapsed_ms: what has passed of the budget since the request arrived.
        terms: what else holds.
    """
    floor = fidelity_floor(hint, candidates)
    budget_ms = hint.budget_ms
    if budget_ms is None:
        limit = Limit(terms.max_wait_ms, whole=False)
    else:
        left_ms = (budget_ms - elapsed_ms - terms.reserve_ms) * terms.tightened
        limit = Limit(left_ms, whole=True)
    grounds = Grounds(hint, candidates, limit, floor)
    pin = hint.variant
    allowed = [
        c
        for c in candidates
        if c.fidelity >= floor and not c.cold and (pin is None or c.variant == pin)
    ]
    if not allowed:
        return _out_of_reach(grounds)
    in_time = limit.met_by(allowed)
    if in_time:
        chosen, reason, at_risk = *_pick(hint, in_time, cheapest=terms.cheapest), False
    else:
        hopeful = [c for c in allowed if limit.median(c) <= limit.left_ms]
        if terms.strict or not hopeful:
            return _refuse(grounds, allowed, terms)
        chosen, at_risk = min(hopeful, key=limit.p95), True
        reason = f"at risk: median forecast {chosen.forecast.p50_ms:.1f} ms fits, p95 does not"
    return Decision(
        chosen=chosen,
        reason=reason + terms.note,
        at_risk=at_risk,
        budget_ms=budget_ms,
        grounds=grounds,
    )


def fidelity_floor(hint: Hint, candidates: Sequence[Candidate]) -> float:
    """The lowest fidelity that the hint allows, given the deployed variants."""
    if hint.quality is None:
        return 0.0
    if hint.quality.best:
        return max(c.fidelity for c in candidates)
    return hint.quality.floor


def _pick(hint: Hint, in_time: Sequence[Candidate], *, cheapest: bool) -> tuple[Candidate, str]:
    """Score and pick among those that fit."""
    if hint.variant is not None:
        return in_time[0], "pinned by the request"
    if hint.budget_ms is None or (hint.quality and hint.quality.best) or cheapest:
        chosen = min(in_time, key=_cheaper_then_more_loaded)
        if hint.quality and hint.quality.best:
            return chosen, "highest fidelity deployed"
        return chosen, "cheapest at or above the fidelity floor"
    top = max([c.fidelity for c in in_time])
    near_top = [c for c in in_time if c.fidelity >= top - FIDELITY_TIE]
    chosen = near_top[0] if len(near_top) == 1 else min(near_top, key=_cheaper_then_more_loaded)
    return chosen, "highest fidelity whose p95 forecast fits the budget"


def _cheaper_then_more_loaded(c: Candidate) -> tuple[float, float]:
    return c.cost, -c.forecast.wait_ms


def _out_of_reach(grounds: Grounds) -> Decision:
    """No variant is allowed; waiting would not help."""
    fidelities = [c.fidelity for c in grounds.candidates]
    return Decision(
        chosen=None,
        reason=f"the asked fidelity is {grounds.floor:.6f}, "
        f"the highest deployed {max(fidelities):.6f}",
        refused_for="quality",
        budget_ms=grounds.hint.budget_ms,
        grounds=grounds,
    )


def _refuse(grounds: Grounds, allowed: Sequence[Candidate], terms: Terms) -> Decision:
    """None can make it: say when the soonest could, or that none ever can."""
    limit = grounds.limit
    able_when_idle = [c for c in allowed if limit.median(c) - c.forecast.wait_ms <= limit.left_ms]
    if able_when_idle:
        soonest_ms = max(min(limit.p95(c) for c in able_when_idle) - limit.left_ms, 0.0)
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
        reason=reason + terms.note,
        budget_ms=grounds.hint.budget_ms,
        retry_after_s=retry_after_s,
        refused_for="latency_ms" if limit.whole else None,
        grounds=grounds,
    )


def _why_not(c: Candidate, chosen: Candidate | None, grounds: Grounds) -> str:
    """Why a variant is not the chosen one: the first filter that it failed, or what the pick preferred."""
    limit, pin = grounds.limit, grounds.hint.variant
    if c.fidelity < grounds.floor:
        return f"fidelity {c.fidelity:.6f} is below the floor {grounds.floor:.6f}"
    if pin is not None and c.variant != pin:
        return f"{pin} is pinned"
    if c.cold:
        return "no replica is up yet"
    if limit.p95(c) > limit.left_ms or chosen is None:
        what = "p95 forecast" if limit.whole else "forecast wait"
        return f"{what} {limit.p95(c):.1f} ms exceeds the {limit.left_ms:.1f} ms left"
    if c.cost >= chosen.cost:
        return f"costs {c.cost / chosen.cost:.1f} times as much as {chosen.variant}"
    return f"fidelity {c.fidelity:.6f}, {chosen.variant} has {chosen.fidelity:.6f} and fits"
