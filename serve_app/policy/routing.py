"""filter → score → pick → Decision: the whole choice of a variant, on one page.

| hint | filter | pick |
|---|---|---|
| budget | p95 forecast fits what is left of it | highest fidelity, near-ties to the cheaper |
| quality floor | fidelity at or above the floor | the cheapest |
| quality best | the highest fidelity deployed | that one |
| both | both | highest fidelity, near-ties to the cheaper |
| variant | that one | that one |

Among equals the more loaded one that still fits is taken: the idle one is kept for a tighter budget.
While queues stand, they have a price (`price.py`), and a request with a budget goes where it is worth most
beyond its price; one that is worth less than its price everywhere is refused.
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
AN_ANSWER = 3.0  # what an answer in time is worth, beside 0 to 1 for its fidelity
SHED_RETRY_S = 0.2  # prices fall that fast
BUDGET_REASON = "highest fidelity whose p95 forecast fits the budget"
PRICED_REASON = "fits the budget, and of the busy queues this is the one it is worth most in"
BEST_REASON = "highest fidelity deployed"


class Candidate(NamedTuple):
    """A deployed variant, as one request sees it."""

    variant: str
    fidelity: float
    cost: float  # milliseconds per token in a full batch
    forecast: Forecast
    cold: bool = False  # no replica is up: it cannot be chosen, only wished for
    price: float = 0.0  # of all the request's tokens in this queue; see `price.py`


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
    sheds: bool = False  # whether a request that costs more than it is worth is refused
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
        chosen, reason = _pick(grounds, in_time, terms)
        at_risk = False
    else:
        chosen, reason = _hope(grounds, allowed, terms)
        at_risk = True
    if chosen is None:
        return _refuse(grounds, allowed, terms)
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


def _pick(
    grounds: Grounds, in_time: Sequence[Candidate], terms: Terms
) -> tuple[Candidate | None, str]:
    """Score and pick among those that fit; none where all are too dear."""
    hint = grounds.hint
    if hint.variant is not None:
        return in_time[0], "pinned by the request"
    best = hint.quality is not None and hint.quality.best
    if hint.budget_ms is None or best or terms.cheapest:
        chosen = min(in_time, key=_cheaper_then_more_loaded)
        return chosen, BEST_REASON if best else "cheapest at or above the fidelity floor"
    if max([c.price for c in in_time]):
        return _worth_most(grounds, in_time, sheds=terms.sheds), PRICED_REASON
    top = max([c.fidelity for c in in_time])
    near_top = [c for c in in_time if c.fidelity >= top - FIDELITY_TIE]
    chosen = near_top[0] if len(near_top) == 1 else min(near_top, key=_cheaper_then_more_loaded)
    return chosen, BUDGET_REASON


def _worth_most(grounds: Grounds, able: Sequence[Candidate], *, sheds: bool) -> Candidate | None:
    """The one with the most worth beyond its price; None where a request shall give way."""
    top = max([c.fidelity for c in able])
    deployed = [c.fidelity for c in grounds.candidates]
    least, span = min(deployed), max(deployed) - min(deployed) or 1.0

    def net(c: Candidate) -> tuple[float, float, float]:
        fidelity = top if c.fidelity >= top - FIDELITY_TIE else c.fidelity
        return AN_ANSWER + (fidelity - least) / span - c.price, -c.cost, c.forecast.wait_ms

    chosen = max(able, key=net)
    return None if sheds and net(chosen)[0] < 0 else chosen


def _hope(
    grounds: Grounds, allowed: Sequence[Candidate], terms: Terms
) -> tuple[Candidate | None, str]:
    """No p95 fits: the one whose median does, if the request may be let in at that risk."""
    limit = grounds.limit
    hopeful = [c for c in allowed if limit.median(c) <= limit.left_ms]
    if terms.strict or not hopeful:
        return None, ""
    chosen = min(hopeful, key=limit.p95)
    if terms.sheds and grounds.hint.variant is None and chosen.price > AN_ANSWER:
        return None, ""
    return chosen, f"at risk: median forecast {chosen.forecast.p50_ms:.1f} ms fits, p95 does not"


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
        soonest_ms = min(limit.p95(c) for c in able_when_idle) - limit.left_ms
        reason = "too much work is queued" + (" to meet the budget" if limit.whole else "")
        if soonest_ms <= 0:
            reason = "too much work is queued, and longer requests give way to shorter ones"
        retry_after_s = max(soonest_ms / 1000, SHED_RETRY_S)
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
    if limit.p95(c) > limit.left_ms:
        what = "p95 forecast" if limit.whole else "forecast wait"
        return f"{what} {limit.p95(c):.1f} ms exceeds the {limit.left_ms:.1f} ms left"
    return _less_than(chosen, c)


def _less_than(chosen: Candidate | None, c: Candidate) -> str:
    """What the pick had against one that would be in time."""
    if chosen is None or c.price > chosen.price:
        return "its queue is kept for shorter requests"
    if c.cost >= chosen.cost:
        return f"costs {c.cost / chosen.cost:.1f} times as much as {chosen.variant}"
    return f"fidelity {c.fidelity:.6f}, {chosen.variant} has {chosen.fidelity:.6f} and fits"
