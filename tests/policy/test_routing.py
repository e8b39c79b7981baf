"""The table of hints, row by row, refusals, prices, and why each variant was not chosen."""

import pytest

from serve_app.policy.hint import Hint, Quality
from serve_app.policy.routing import (
    Candidate,
    Decision,
    Terms,
    decide,
)
from tests.policy.candidates import candidate

MAX_WAIT_MS = 30_000.0
BEST, BALANCED, FAST = Quality(best=True), Quality(floor=0.99), Quality(floor=0.0)


# Idle, at p95: 48, 24 and 12 ms.
LADDER = [
    candidate("fp32", 1.0, 4, service_ms=40),
    candidate("bf16", 0.9995, 2, service_ms=20),
    candidate("int8", 0.985, 1, service_ms=10),
]


QUIET = Terms(MAX_WAIT_MS)


def _decide(
    hint: Hint, candidates: list[Candidate], *, elapsed_ms: float = 0.0, terms: Terms = QUIET
) -> Decision:
    return decide(hint, candidates, elapsed_ms=elapsed_ms, terms=terms)


def _name(decision: Decision) -> str | None:
    return decision.chosen and decision.chosen.variant


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        # latency_ms: highest fidelity that fits at p95; fp32 and bf16 are a tie
        (Hint(budget_ms=100), "bf16"),
        (Hint(budget_ms=24), "bf16"),
        (Hint(budget_ms=15), "int8"),
        (Hint(budget_ms=12), "int8"),
        (Hint(budget_ms=9), None),
        # quality: the cheapest at or above the floor; best is strictly the highest
        (Hint(quality=BEST), "fp32"),
        (Hint(quality=BALANCED), "bf16"),
        (Hint(quality=FAST), "int8"),
        (Hint(quality=Quality(floor=1.0)), "fp32"),
        (Hint(quality=Quality(floor=0.9996)), "fp32"),
        (Hint(quality=Quality(floor=0.9995)), "bf16"),
        (Hint(quality=Quality(floor=0.985)), "int8"),
        # both: the floor is a promise, the budget a filter
        (Hint(budget_ms=100, quality=BALANCED), "bf16"),
        (Hint(budget_ms=24, quality=BALANCED), "bf16"),
        (Hint(budget_ms=15, quality=BALANCED), None),
        (Hint(budget_ms=100, quality=FAST), "bf16"),
        (Hint(budget_ms=15, quality=FAST), "int8"),
        (Hint(budget_ms=100, quality=BEST), "fp32"),
        (Hint(budget_ms=30, quality=BEST), None),
        (Hint(budget_ms=100, quality=Quality(floor=0.9999)), "fp32"),
        # variant: that one, whatever else would be better
        (Hint(variant="fp32"), "fp32"),
        (Hint(variant="bf16"), "bf16"),
        (Hint(variant="int8"), "int8"),
        (Hint(variant="int8", budget_ms=100), "int8"),
        (Hint(variant="fp32", budget_ms=100), "fp32"),
        (Hint(variant="fp32", budget_ms=15), None),
        (Hint(variant="fp32", quality=BALANCED), "fp32"),
        (Hint(variant="int8", quality=FAST, budget_ms=100), "int8"),
    ],
)
def test_the_table_of_hints(hint: Hint, expected: str | None) -> None:
    """Each hint, and each pair of hints, chooses what the documentation says on an idle ladder."""
    for candidates in (LADDER, LADDER[::-1]):  # the order of deployment decides nothing
        decision = _decide(hint, candidates)
        assert _name(decision) == expected
        assert not decision.at_risk
        assert decision.budget_ms == hint.budget_ms


def test_what_has_passed_counts_against_the_budget() -> None:
    """A budget counts from the request's arrival: 80 of 100 ms gone leave 20."""
    assert _name(_decide(Hint(budget_ms=100), LADDER, elapsed_ms=80)) == "int8"
    assert _name(_decide(Hint(budget_ms=100), LADDER, elapsed_ms=95)) is None


def test_a_queue_moves_requests_to_another_variant() -> None:
    """The forecast, not the idle time, must fit: a queue at bf16 leaves the budget to int8."""
    busy = candidate("bf16", 0.9995, 2, service_ms=20, wait_ms=500)
    assert _name(_decide(Hint(budget_ms=40), [busy, LADDER[2]])) == "int8"
    assert _name(_decide(Hint(quality=BALANCED), [busy, LADDER[0]])) == "bf16"


@pytest.mark.parametrize(
    ("cheap_fidelity", "expected"), [(0.999, "cheap"), (0.9991, "cheap"), (0.9989, "dear")]
)
def test_near_equals_are_a_tie_and_the_cheaper_wins(cheap_fidelity: float, expected: str) -> None:
    """Fidelities within 0.001 of the best that fits are a tie; beyond it fidelity decides."""
    ladder = [
        candidate("dear", 1.0, 2, service_ms=10),
        candidate("cheap", cheap_fidelity, 1, service_ms=10),
    ]
    assert _name(_decide(Hint(budget_ms=100), ladder)) == expected


def test_best_knows_no_tie() -> None:
    """`best` is strictly the highest fidelity, by however little; among equals the cheaper."""
    ladder = [
        candidate("dear", 1.0, 3, service_ms=10),
        candidate("equal", 1.0, 2, service_ms=10),
        candidate("near", 0.99999, 1, service_ms=10),
    ]
    assert _name(_decide(Hint(quality=BEST), ladder)) == "equal"
    assert _name(_decide(Hint(quality=BEST, budget_ms=100), ladder)) == "equal"


def test_a_median_that_fits_is_admitted_at_risk() -> None:
    """When no p95 fits but a median does, the safest such variant is tried, and said to be at risk."""
    decision = _decide(Hint(budget_ms=22, quality=BALANCED), LADDER)
    assert _name(decision) == "bf16"
    assert decision.at_risk
    assert "at risk" in decision.reason


def test_the_safest_of_the_risky_is_tried() -> None:
    """Among variants whose median fits, the lowest p95 has the best chance, whatever its fidelity."""
    ladder = [
        candidate("wide", 1.0, 2, service_ms=10, spread=3),
        candidate("narrow", 0.9, 1, service_ms=11, spread=1.5),
    ]
    assert _name(_decide(Hint(budget_ms=12), ladder)) == "narrow"


def test_a_refusal_says_when_the_queue_will_have_shrunk() -> None:
    """Where the wait is the trouble, the client hears how long until the soonest p95 would fit."""
    busy = [
        candidate("fp32", 1.0, 4, service_ms=40, wait_ms=1000),
        candidate("int8", 0.985, 1, service_ms=10, wait_ms=3000),
    ]
    decision = _decide(Hint(budget_ms=50), busy)
    assert decision.chosen is None
    assert decision.retry_after_s == pytest.approx((1040 * 1.2 - 50) / 1000)
    assert "queued" in decision.reason


def test_the_soonest_is_one_that_could_make_it() -> None:
    """A variant too slow even when idle does not shorten the promised wait."""
    busy = [
        candidate("slow", 1.0, 4, service_ms=60),
        candidate("fast", 0.985, 1, service_ms=10, wait_ms=3000),
    ]
    assert _decide(Hint(budget_ms=50), busy).retry_after_s == pytest.approx(
        (3010 * 1.2 - 50) / 1000
    )


def test_a_hopeless_budget_gets_no_promise_to_retry() -> None:
    """Below what the fastest needs when idle, no waiting helps, and the refusal says what it needs."""
    decision = _decide(Hint(budget_ms=5), LADDER)
    assert decision.chosen is None
    assert decision.retry_after_s is None
    assert "int8, the fastest allowed, needs 10.0 ms" in decision.reason
    assert decision.refused_for == "latency_ms"


def test_an_unreachable_floor_is_refused_for_good() -> None:
    """No variant at the floor: none is chosen, none will be after any wait, each is explained."""
    decision = _decide(Hint(quality=Quality(floor=0.999)), LADDER[2:])
    assert (decision.chosen, decision.retry_after_s) == (None, None)
    assert [r.reason for r in decision.rejected] == [
        "fidelity 0.985000 is below the floor 0.999000"
    ]
    assert decision.refused_for == "quality"


def test_a_pin_below_the_floor_is_not_served() -> None:
    """A pin does not break a floor."""
    assert _name(_decide(Hint(variant="int8", quality=BALANCED), LADDER)) is None


def test_without_a_budget_a_long_wait_is_refused() -> None:
    """`max_wait_ms` bounds the wait that a request without a budget is let in for."""
    queue = [candidate("int8", 0.985, 1, service_ms=10, wait_ms=MAX_WAIT_MS + 1000)]
    decision = _decide(Hint(quality=FAST), queue)
    assert decision.chosen is None
    assert decision.retry_after_s == pytest.approx(1.0)
    assert decision.refused_for is None  # the client asked for nothing that it could change


@pytest.mark.parametrize("hint", [Hint(quality=BEST), Hint(variant="fp32")])
def test_without_a_budget_a_long_request_is_served(hint: Hint) -> None:
    """Only the wait is bounded: an idle server takes a request that runs for a minute."""
    assert _name(_decide(hint, [candidate("fp32", 1.0, 4, service_ms=60_000)])) == "fp32"


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (
            Hint(budget_ms=15),
            {
                "fp32": "p95 forecast 48.0 ms exceeds the 15.0 ms left",
                "bf16": "p95 forecast 24.0 ms exceeds the 15.0 ms left",
            },
        ),
        (
            Hint(quality=BALANCED),
            {
                "fp32": "costs 2.0 times as much as bf16",
                "int8": "fidelity 0.985000 is below the floor 0.990000",
            },
        ),
        (
            Hint(budget_ms=100),
            {
                "fp32": "costs 2.0 times as much as bf16",
                "int8": "fidelity 0.985000, bf16 has 0.999500 and fits",
            },
        ),
        (Hint(variant="int8"), {"fp32": "int8 is pinned", "bf16": "int8 is pinned"}),
    ],
)
def test_each_rejected_variant_has_its_reason(hint: Hint, expected: dict[str, str]) -> None:
    """The decision explains itself: who was not chosen, and by how much."""
    assert {r.variant: r.reason for r in _decide(hint, LADDER).rejected} == expected


def test_what_is_kept_back_and_what_is_tightened_leave_less_time() -> None:
    """The reserve comes off the budget first, then only a share of what is left may be filled."""
    hint = Hint(budget_ms=50)
    assert _name(_decide(hint, LADDER[:1])) == "fp32"
    assert _decide(hint, LADDER[:1], terms=Terms(MAX_WAIT_MS, reserve_ms=3)).at_risk
    assert _name(_decide(hint, LADDER[:1], terms=Terms(MAX_WAIT_MS, tightened=0.5))) is None


def test_cheapest_terms_take_the_cheapest_in_time() -> None:
    """Under brownout a budget buys no fidelity; the note says why."""
    terms = Terms(MAX_WAIT_MS, cheapest=True, note="; brownout")
    decision = _decide(Hint(budget_ms=1000), LADDER, terms=terms)
    assert _name(decision) == "int8"
    assert decision.reason.endswith("; brownout")


def test_a_cold_variant_is_never_chosen() -> None:
    """Not even pinned or as the only one; its reason says that no replica is up."""
    cold = candidate("fp32", 1.0, 4, service_ms=40, cold=True)
    for hint in (Hint(), Hint(budget_ms=1000), Hint(variant="fp32"), Hint(quality=BEST)):
        decision = _decide(hint, [cold])
        assert decision.chosen is None
        assert [r.reason for r in decision.rejected] == ["no replica is up yet"]
