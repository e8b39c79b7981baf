"""What the prices of queues change in a decision."""

import pytest

from serve_app.policy.hint import Hint
from serve_app.policy.routing import (
    AN_ANSWER,
    PRICED_REASON,
    SHED_RETRY_S,
    Candidate,
    Decision,
    Terms,
    decide,
)
from tests.policy.candidates import candidate

QUIET = Terms(30_000.0)
SHEDS = Terms(30_000.0, sheds=True)


def _decide(hint: Hint, candidates: list[Candidate], *, terms: Terms = QUIET) -> Decision:
    return decide(hint, candidates, elapsed_ms=0.0, terms=terms)


def _name(decision: Decision) -> str | None:
    return decision.chosen and decision.chosen.variant


def _priced(best: float, cheap: float) -> list[Candidate]:
    return [
        candidate("fp32", 1.0, 4, service_ms=40, price=best),
        candidate("int8", 0.985, 1, service_ms=10, price=cheap),
    ]


@pytest.mark.parametrize(
    ("best", "cheap", "expected"),
    [
        pytest.param(0.9, 0.0, "fp32", id="worth 1 more in the best than in the other"),
        pytest.param(1.1, 0.0, "int8", id="the best is too dear"),
        pytest.param(1.9, 1.1, "fp32", id="both are dear, the best less beyond its worth"),
        pytest.param(
            AN_ANSWER + 1.1, AN_ANSWER + 0.1, None, id="worth less than its price everywhere"
        ),
    ],
)
def test_a_request_goes_where_its_worth_exceeds_its_price_most(
    best: float, cheap: float, expected: str | None
) -> None:
    """An answer has a worth, its fidelity up to 1 more; a price above both everywhere refuses."""
    decision = _decide(Hint(budget_ms=1000), _priced(best, cheap), terms=SHEDS)
    assert _name(decision) == expected
    if decision.chosen is None:
        assert decision.retry_after_s == pytest.approx(SHED_RETRY_S)
        assert "longer requests give way to shorter ones" in decision.reason
    else:
        assert decision.reason == PRICED_REASON
    assert _decide(Hint(budget_ms=1000), _priced(best, cheap)).chosen is not None


def test_a_price_explains_who_was_not_chosen() -> None:
    """The dear queue is kept for shorter requests, and the decision says so."""
    (rejected,) = _decide(Hint(budget_ms=1000), _priced(1.1, 0.0), terms=SHEDS).rejected
    assert rejected.reason == "its queue is kept for shorter requests"


@pytest.mark.parametrize("price", [AN_ANSWER, AN_ANSWER + 0.01])
def test_what_may_come_too_late_may_not_be_dear(price: float) -> None:
    """At risk a price up to an answer's worth is let in; a pin or a policy that does not shed is, always."""
    dear = [candidate("int8", 0.985, 1, service_ms=10, price=price)]
    admitted = price <= AN_ANSWER
    assert (_decide(Hint(budget_ms=11), dear, terms=SHEDS).chosen is not None) == admitted
    assert _name(_decide(Hint(budget_ms=11, variant="int8"), dear, terms=SHEDS)) == "int8"
    assert _name(_decide(Hint(budget_ms=11), dear)) == "int8"
