"""What holds for every hint in every state."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.hint import Hint, Quality
from serve_app.policy.routing import FIDELITY_TIE, Candidate, Decision, Terms, decide
from tests.policy.candidates import candidate

MAX_WAIT_MS = 30_000.0
BEST = Quality(best=True)


def _decide(hint: Hint, candidates: list[Candidate]) -> Decision:
    return decide(hint, candidates, elapsed_ms=0.0, terms=Terms(MAX_WAIT_MS))


FIDELITIES = st.floats(0.9, 1.0) | st.sampled_from([0.985, 0.99, 0.9985, 0.9995, 1.0])
TIMES_MS = st.floats(0.1, 2000)
SPREADS = st.floats(1, 3)


def _ladders(spreads: st.SearchStrategy[float]) -> st.SearchStrategy[list[Candidate]]:
    one = st.tuples(FIDELITIES, st.floats(0.01, 10), TIMES_MS, st.just(0.0) | TIMES_MS, spreads)
    return st.lists(one, min_size=1, max_size=5).map(
        lambda rows: [
            candidate(f"v{i}", fidelity, cost, service_ms=service, wait_ms=wait, spread=spread)
            for i, (fidelity, cost, service, wait, spread) in enumerate(rows)
        ]
    )


LADDERS = _ladders(SPREADS)
PRICED_LADDERS = st.tuples(LADDERS, st.lists(st.floats(0, 10), min_size=5, max_size=5)).map(
    lambda both: [c._replace(price=price) for c, price in zip(*both, strict=False)]
)
TERMS = st.builds(
    Terms,
    st.just(MAX_WAIT_MS),
    reserve_ms=st.just(0.0),
    tightened=st.floats(0.1, 1),
    cheapest=st.booleans(),
    sheds=st.booleans(),
    note=st.just(""),
)
EVEN_LADDERS = _ladders(st.just(1.5))
BUDGETS = st.floats(0.1, 5000)
QUALITIES = st.none() | st.just(BEST) | st.builds(Quality, floor=FIDELITIES | st.just(0.0))
PINS = st.none() | st.just("v0")
HINTS = st.builds(Hint, budget_ms=st.none() | BUDGETS, quality=QUALITIES, variant=PINS)


def _floor(hint: Hint, ladder: list[Candidate]) -> float:
    if hint.quality is None:
        return 0.0
    return max(c.fidelity for c in ladder) if hint.quality.best else hint.quality.floor


def _allowed(hint: Hint, ladder: list[Candidate]) -> list[Candidate]:
    floor = _floor(hint, ladder)
    return [c for c in ladder if c.fidelity >= floor and hint.variant in (None, c.variant)]


@given(HINTS, LADDERS)
def test_a_floor_and_a_pin_are_never_broken(hint: Hint, ladder: list[Candidate]) -> None:
    """Whatever the load, the answer is at or above the floor and from the pinned variant."""
    chosen = _decide(hint, ladder).chosen
    assert chosen is None or chosen in _allowed(hint, ladder)


@given(HINTS, PRICED_LADDERS, TERMS)
def test_a_floor_is_never_broken_at_any_price(
    hint: Hint, ladder: list[Candidate], terms: Terms
) -> None:
    """Prices, brownout and unfair clients change who is refused, never what a floor or a pin allows."""
    chosen = decide(hint, ladder, elapsed_ms=0.0, terms=terms).chosen
    assert chosen is None or chosen in _allowed(hint, ladder)


@given(HINTS, PRICED_LADDERS)
def test_no_429_while_a_feasible_variant_exists(hint: Hint, ladder: list[Candidate]) -> None:
    """Whatever it costs."""
    decision = decide(hint, ladder, elapsed_ms=0.0, terms=Terms(MAX_WAIT_MS, sheds=True))
    left_ms = MAX_WAIT_MS if hint.budget_ms is None else hint.budget_ms
    whole = hint.budget_ms is not None
    feasible = [
        c
        for c in _allowed(hint, ladder)
        if (c.forecast.p95_ms if whole else c.forecast.wait_ms) <= left_ms
    ]
    assert not feasible or decision.chosen in feasible


@given(HINTS, LADDERS)
def test_nobody_is_refused_while_a_variant_can_make_it(hint: Hint, ladder: list[Candidate]) -> None:
    """A refusal means that no allowed variant's median fits; a p95 that fits is never at risk."""
    left_ms = MAX_WAIT_MS if hint.budget_ms is None else hint.budget_ms
    allowed = _allowed(hint, ladder)
    decision = _decide(hint, ladder)
    assert (decision.chosen is None) == all(c.forecast.p50_ms > left_ms for c in allowed)
    safe = any(c.forecast.p95_ms <= left_ms for c in allowed)
    assert decision.at_risk == (decision.chosen is not None and not safe)


@given(HINTS, LADDERS)
def test_every_variant_is_chosen_or_rejected(hint: Hint, ladder: list[Candidate]) -> None:
    """Each deployed variant appears once in a decision, and the rejected ones with a reason."""
    decision = _decide(hint, ladder)
    named = [r.variant for r in decision.rejected]
    named += [decision.chosen.variant] if decision.chosen else []
    assert sorted(named) == sorted(c.variant for c in ladder)
    assert all(r.reason for r in decision.rejected)


@given(HINTS, LADDERS)
def test_a_promise_to_retry_is_in_the_future(hint: Hint, ladder: list[Candidate]) -> None:
    """`retry_after_s` stands on refusals only, and is above zero."""
    decision = _decide(hint, ladder)
    if decision.retry_after_s is not None:
        assert decision.chosen is None
        assert decision.retry_after_s > 0


@given(LADDERS, QUALITIES, PINS, BUDGETS, st.floats(0, 5000))
def test_a_larger_budget_never_lowers_fidelity(
    ladder: list[Candidate], quality: Quality | None, pin: str | None, budget_ms: float, more: float
) -> None:
    """Without prices, in one state, more time loses at most the tie of 0.001, and is never refused."""
    tight = _decide(Hint(budget_ms=budget_ms, quality=quality, variant=pin), ladder)
    loose = _decide(Hint(budget_ms=budget_ms + more, quality=quality, variant=pin), ladder)
    if tight.chosen is None:
        return
    assert loose.chosen is not None
    assert not (loose.at_risk and not tight.at_risk)
    if not tight.at_risk:
        assert loose.chosen.fidelity >= tight.chosen.fidelity - FIDELITY_TIE - 1e-12


@given(EVEN_LADDERS, QUALITIES, BUDGETS, st.floats(0, 5000))
def test_a_larger_budget_never_lowers_fidelity_even_at_risk(
    ladder: list[Candidate], quality: Quality | None, budget_ms: float, more: float
) -> None:
    """Where all variants spread alike, the same holds for decisions at risk."""
    tight = _decide(Hint(budget_ms=budget_ms, quality=quality), ladder)
    loose = _decide(Hint(budget_ms=budget_ms + more, quality=quality), ladder)
    if tight.chosen is not None:
        assert loose.chosen is not None
        assert loose.chosen.fidelity >= tight.chosen.fidelity - FIDELITY_TIE - 1e-12


@given(LADDERS, FIDELITIES)
def test_without_a_budget_the_cheapest_at_the_floor_is_taken(
    ladder: list[Candidate], floor: float
) -> None:
    """With time enough for all, a quality alone buys no more than it asks for."""
    chosen = _decide(Hint(quality=Quality(floor=floor)), ladder).chosen
    allowed = [c.cost for c in ladder if c.fidelity >= floor]
    assert (chosen and chosen.cost) == (min(allowed) if allowed else None)


def _by_the_book(hint: Hint, ladder: list[Candidate], terms: Terms) -> str | None:
    """The choice as `routing.py` tells it in words, from all forecasts at once."""
    whole = hint.budget_ms is not None
    left_ms = hint.budget_ms * terms.tightened if hint.budget_ms is not None else MAX_WAIT_MS
    allowed = _allowed(hint, ladder)
    fits = [c for c in allowed if (c.forecast.p95_ms if whole else c.forecast.wait_ms) <= left_ms]
    best = hint.quality is not None and hint.quality.best
    if fits and (not whole or best or terms.cheapest or hint.variant is not None):
        return min(fits, key=lambda c: (c.cost, -c.forecast.wait_ms, -c.fidelity)).variant
    if fits:
        top, fidelities = max(c.fidelity for c in fits), [c.fidelity for c in ladder]
        least, span = min(fidelities), max(fidelities) - min(fidelities) or 1.0

        def rank(c: Candidate) -> tuple[float, float, float, float]:
            worth = ((top if c.fidelity >= top - FIDELITY_TIE else c.fidelity) - least) / span
            return worth - c.price, -c.cost, c.forecast.wait_ms, c.fidelity

        return max(fits, key=rank).variant
    hopeful = [c for c in allowed if c.forecast.p50_ms <= left_ms or not terms.sheds]
    if not hopeful or not whole:
        return None
    return min(hopeful, key=lambda c: (c.forecast.p95_ms, -c.fidelity)).variant


@given(HINTS, PRICED_LADDERS, TERMS)
def test_the_choice_is_the_one_by_the_book(
    hint: Hint, ladder: list[Candidate], terms: Terms
) -> None:
    """Passing over variants that cannot be the pick, without their forecasts, loses no better one."""
    assert _name_of(decide(hint, ladder, elapsed_ms=0.0, terms=terms)) == _by_the_book(
        hint, ladder, terms
    )


def _name_of(decision: Decision) -> str | None:
    return decision.chosen and decision.chosen.variant
