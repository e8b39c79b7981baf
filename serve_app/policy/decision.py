"""What goes into a decision and what comes out of it.

A decision is made for every request, its explanation read by few: `Decision.grounds` and
`Decision.rejected` are worked out when asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from serve_app.policy.forecast import Forecast
from serve_app.policy.hint import Hint

FIDELITY_TIE = 0.001  # within it variants are worth the same


class Row(Protocol):
    """A deployed variant in a choice; its forecast may be made when it is asked for."""

    @property
    def variant(self) -> str: ...
    @property
    def fidelity(self) -> float: ...
    @property
    def cost(self) -> float: ...
    @property
    def cold(self) -> bool: ...
    @property
    def price(self) -> float: ...
    @property
    def wait_ms(self) -> float: ...

    @property
    def service_ms(self) -> float:
        """Beside the wait; asked for after `p95_ms` only."""
        ...

    def p95_ms(self) -> float:
        """Of wait and service."""
        ...

    def p50_ms(self) -> float:
        """The learned median of the same."""
        ...

    def soonest_ms(self) -> float:
        """`p95_ms` at the first place in line."""
        ...


class Candidate(NamedTuple):
    """A deployed variant, as one request sees it."""

    variant: str
    fidelity: float
    cost: float  # milliseconds per token in a full batch
    forecast: Forecast
    cold: bool = False  # no replica is up: it cannot be chosen, only wished for
    price: float = 0.0  # of a text's work here, in normalised fidelity; see `pool.py`
    soon_ms: float | None = None  # p95 at the first place in line, where that is asked for

    @property
    def wait_ms(self) -> float:
        return self.forecast.wait_ms

    @property
    def service_ms(self) -> float:
        return self.forecast.service_ms

    def p95_ms(self) -> float:
        return self.forecast.p95_ms

    def p50_ms(self) -> float:
        return self.forecast.p50_ms

    def soonest_ms(self) -> float:
        return self.forecast.p95_ms if self.soon_ms is None else self.soon_ms


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

    def p95(self, c: Candidate) -> float:
        return c.forecast.p95_ms if self.whole else c.forecast.wait_ms


class Terms(NamedTuple):
    """What holds for a request beside its hint and the variants' load.

    `tightened` and `cheapest` come from `fairness.py` and `brownout.py`, and are off in quiet times.
    """

    max_wait_ms: float  # the longest wait that a request without a budget is let in for
    reserve_ms: float = 0.0  # of each budget: what encoding and sending the answer takes
    tightened: float = 1.0  # the share of the time left that a request may fill
    cheapest: bool = False  # of those in time, the cheapest rather than the best
    sheds: bool = True  # whether a request that is not even likely to be in time is refused
    note: str = ""  # why any of these hold, added to the reason


class Passed(NamedTuple):
    """A variant that was not forecast, since no forecast of it would have changed the choice."""

    variant: str
    fidelity: float
    cost: float
    price: float
    cold: bool


class Grounds(NamedTuple):
    """What a decision was made from."""

    hint: Hint
    candidates: Sequence[Candidate]  # those that were forecast
    limit: Limit
    floor: float


class Record(Protocol):
    """Enough to say later what a decision was made from."""

    def grounds(self) -> Grounds:
        """As it was then."""
        ...

    def passed(self) -> Sequence[Passed]:
        """The variants that were not forecast."""
        ...


_TOLD = ("chosen", "reason", "at_risk", "budget_ms", "retry_after_s", "refused_for")


class Decision:
    """The chosen variant; or none (`chosen` is None), when waiting `retry_after_s` may help.

    `retry_after_s` is None for a decision that chose, and where no waiting would help;
    `refused_for` is the hint that could not be met, None without one.
    """

    __slots__ = (
        "_record",
        "at_risk",
        "budget_ms",
        "chosen",
        "reason",
        "refused_for",
        "retry_after_s",
    )

    def __init__(  # noqa: PLR0913
        self,
        *,
        chosen: Candidate | None,
        reason: str,
        grounds: Grounds | Record,
        at_risk: bool = False,
        budget_ms: float | None = None,
        retry_after_s: float | None = None,
        refused_for: Literal["quality", "latency_ms"] | None = None,
    ) -> None:
        self.chosen = chosen
        self.reason = reason
        self.at_risk = at_risk
        self.budget_ms = budget_ms
        self.retry_after_s = retry_after_s
        self.refused_for = refused_for
        self._record = grounds

    def __repr__(self) -> str:
        """Without the grounds, which are long."""
        told = ((name, getattr(self, name)) for name in _TOLD)
        return f"Decision({', '.join(f'{name}={value!r}' for name, value in told)})"

    @property
    def grounds(self) -> Grounds:
        record = self._record
        return record if isinstance(record, Grounds) else record.grounds()

    @property
    def rejected(self) -> list[Rejected]:
        """Every variant that was not chosen, and why."""
        grounds, record = self.grounds, self._record
        others: list[Candidate | Passed] = [c for c in grounds.candidates if c is not self.chosen]
        if not isinstance(record, Grounds):
            others += record.passed()
        return [Rejected(c.variant, _why_not(c, self.chosen, grounds)) for c in others]


def _why_not(c: Candidate | Passed, chosen: Candidate | None, grounds: Grounds) -> str:
    """Why a variant is not the chosen one: the first filter that it failed, or what the pick preferred."""
    limit, pin = grounds.limit, grounds.hint.variant
    if c.fidelity < grounds.floor:
        return f"fidelity {c.fidelity:.6f} is below the floor {grounds.floor:.6f}"
    if pin is not None and c.variant != pin:
        return f"{pin} is pinned"
    if c.cold:
        return "no replica is up yet"
    if isinstance(c, Candidate) and limit.p95(c) > limit.left_ms:
        what = "p95 forecast" if limit.whole else "forecast wait"
        return f"{what} {limit.p95(c):.1f} ms exceeds the {limit.left_ms:.1f} ms left"
    return _less_than(chosen, c)


def _less_than(chosen: Candidate | None, c: Candidate | Passed) -> str:
    """What the pick had against one that would be in time."""
    if chosen is None:
        return "not asked for"
    if c.fidelity > chosen.fidelity + FIDELITY_TIE and c.price > chosen.price:
        return (
            f"its work would delay others more than its fidelity is worth: price {c.price:.2f} "
            f"against {chosen.price:.2f}"
        )
    if c.cost >= chosen.cost:
        return f"costs {c.cost / chosen.cost:.1f} times as much as {chosen.variant}"
    return f"fidelity {c.fidelity:.6f}, {chosen.variant} has {chosen.fidelity:.6f} and fits"
