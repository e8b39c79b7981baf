"""What the rent of the cores changes in a decision."""

import pytest

from serve_app.policy.hint import Hint
from serve_app.policy.routing import BUDGET_REASON, RENT_REASON, Candidate, Decision, Terms, decide
from tests.policy.candidates import candidate


def _decide(hint: Hint, candidates: list[Candidate], *, sheds: bool = True) -> Decision:
    return decide(hint, candidates, elapsed_ms=0.0, terms=Terms(30_000.0, sheds=sheds))


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
        pytest.param(90.0, 80.0, "int8", id="nobody is refused for a price"),
    ],
)
def test_a_request_goes_where_its_fidelity_exceeds_its_price_most(
    best: float, cheap: float, expected: str
) -> None:
    """Fidelity is worth up to 1; the reason says whether a better one was passed over."""
    decision = _decide(Hint(budget_ms=1000), _priced(best, cheap))
    assert _name(decision) == expected
    assert decision.reason == (BUDGET_REASON if expected == "fp32" else RENT_REASON)
    assert _name(_decide(Hint(budget_ms=1000, variant="fp32"), _priced(best, cheap))) == "fp32"


@pytest.mark.parametrize("budget_ms", [60, 1000])
def test_a_lesser_variant_is_preferred_only_where_it_comes_as_soon(budget_ms: float) -> None:
    """Though the best costs more than it is worth: with the small budget it is the only one in time, with a large one it stays."""
    best, cheap = _priced(1.1, 0.0)
    behind = candidate("int8", 0.985, 1, service_ms=10, wait_ms=90)
    assert _name(_decide(Hint(budget_ms=budget_ms), [best, behind])) == "fp32"
    assert _name(_decide(Hint(budget_ms=budget_ms), [best, cheap])) == "int8"


def test_a_price_explains_who_was_not_chosen() -> None:
    """The more faithful one would be in time, and the decision says why it is not taken."""
    (rejected,) = _decide(Hint(budget_ms=1000), _priced(1.1, 0.0)).rejected
    assert "would delay others more than its fidelity is worth" in rejected.reason
    assert "1.10 against 0.00" in rejected.reason


def test_where_nothing_is_shed_even_what_will_be_late_is_let_in() -> None:
    """The ablation: the one that comes soonest takes it, at risk, and the reason says so."""
    asked = Hint(budget_ms=5)
    assert _decide(asked, _priced(0.0, 0.0)).chosen is None
    let_in = _decide(asked, _priced(0.0, 0.0), sheds=False)
    assert _name(let_in) == "int8"
    assert let_in.at_risk
    assert "does not fit either" in let_in.reason
