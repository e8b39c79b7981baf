"""What a client may ask for, and what is refused."""

import math

import pytest

from serve_app.errors import BadRequest
from serve_app.policy.hint import Hint, Quality, number_or_text, parse_budget_ms, parse_quality

DEFAULT = Hint(budget_ms=1000.0, quality=Quality(floor=0.99))


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (Hint(), DEFAULT),
        (Hint(budget_ms=5.0), Hint(budget_ms=5.0)),
        (Hint(quality=Quality()), Hint(quality=Quality())),
        (Hint(variant="v"), Hint(variant="v")),
    ],
)
def test_the_default_is_for_requests_without_any_hint(hint: Hint, expected: Hint) -> None:
    """One hint of any kind switches the whole default off."""
    assert hint.or_default(DEFAULT) == expected


def test_the_default_pins_nothing() -> None:
    """A default with a pin would take every unhinted request away from the policy."""
    assert Hint().or_default(Hint(budget_ms=1.0, variant="v")) == Hint(budget_ms=1.0)


@pytest.mark.parametrize(
    ("value", "expected"), [(250, 250.0), (0.5, 0.5), (number_or_text("1e3"), 1000.0)]
)
def test_a_budget_is_a_number(value: object, expected: float) -> None:
    """JSON brings numbers; a header's text is made one first."""
    assert parse_budget_ms(value, param="latency_ms") == expected


@pytest.mark.parametrize(("text", "expected"), [("0.5", 0.5), ("fast", "fast"), ("", "")])
def test_text_that_is_no_number_stays_text(text: str, expected: object) -> None:
    """Headers and command lines carry names and numbers alike."""
    assert number_or_text(text) == expected


@pytest.mark.parametrize(
    "value",
    [0, -1, -0.0, math.nan, math.inf, -math.inf, "nan", "inf", "", "soon", "5ms", True, [5], {}],
)
def test_an_impossible_budget_is_refused_with_its_value(value: object) -> None:
    """Only finite numbers above 0 are budgets; the refusal names the field and the value."""
    with pytest.raises(BadRequest) as refused:
        parse_budget_ms(value, param="X-Latency-Ms")
    assert refused.value.param == "X-Latency-Ms"
    assert repr(value) in refused.value.message


def test_a_budget_too_large_for_a_float_is_refused() -> None:
    """Python's integers have no end, floats have."""
    with pytest.raises(BadRequest, match="above 0, got 1000"):
        parse_budget_ms(10**400, param="latency_ms")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("best", (0.0, True)),
        ("balanced", (0.99, False)),
        ("fast", (0.0, False)),
        (0, (0.0, False)),
        (1, (1.0, False)),
        (0.995, (0.995, False)),
    ],
)
def test_quality_is_a_name_or_a_floor(value: object, expected: tuple[float, bool]) -> None:
    """The three names stand for what the documentation says; 0 and 1 are floors too."""
    quality = parse_quality(value, param="quality")
    assert (quality.floor, quality.best) == expected


@pytest.mark.parametrize(
    "value", ["Best", "good", "", -0.01, 1.01, math.nan, "nan", False, ["best"], {"floor": 1}]
)
def test_an_unknown_quality_is_refused_with_its_value(value: object) -> None:
    """The refusal names the field, the value, and what is known."""
    with pytest.raises(BadRequest, match="'best', 'balanced', 'fast'") as refused:
        parse_quality(value, param="quality")
    assert refused.value.param == "quality"
    assert repr(value) in refused.value.message
