"""Whose turn it is, and how long one waits for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.turns import (
    AGES,
    PLACES_MS,
    Line,
    can_make_it,
    place_of,
    turn_s,
    with_overtakers_ms,
)

WORK = st.floats(0.1, 500)
ARRIVALS = st.lists(
    st.tuples(st.floats(0, 10), st.sampled_from(PLACES_MS), WORK), min_size=1, max_size=40
)
ENDS = st.lists(st.floats(0, 5), max_size=6)


def test_short_texts_go_first_and_those_in_a_hurry() -> None:
    """At one moment: by own time, then by what the budgets leave; a wait makes up for either."""
    query, document = 3.0, 40.0
    now, soon, patient = (turn_s(0, place_ms=p, work_ms=query) for p in (0, 50, 1000))
    assert now < soon < turn_s(0, place_ms=50, work_ms=document) < patient
    later_s = AGES * (document - query) / 1000
    assert turn_s(later_s - 0.01, place_ms=50, work_ms=query) < turn_s(
        0, place_ms=50, work_ms=document
    )
    assert turn_s(later_s + 0.01, place_ms=50, work_ms=query) > turn_s(
        0, place_ms=50, work_ms=document
    )


@pytest.mark.parametrize(
    ("left_ms", "place_ms"),
    [
        (-5, 0),
        (0, 0),
        (49.9, 0),
        (50, 50),
        (248, 100),
        (999, 500),
        (1e9, 1000),
        (float("inf"), 1000),
    ],
)
def test_a_budget_leaves_a_place(left_ms: float, place_ms: float) -> None:
    """The last that is no later than the time left."""
    assert PLACES_MS[place_of(left_ms)] == place_ms


@given(st.floats(0, 100), st.sampled_from(PLACES_MS), WORK, st.floats(0, 100), WORK)
def test_nobody_starves(
    at_s: float, place_ms: float, work_ms: float, later_s: float, other_ms: float
) -> None:
    """Whoever comes later than the longest place and `AGES` own times goes behind, however short and urgent."""
    bound_s = (PLACES_MS[-1] + AGES * work_ms) / 1000
    mine = turn_s(at_s, place_ms=place_ms, work_ms=work_ms)
    other = turn_s(at_s + bound_s + later_s, place_ms=0.0, work_ms=other_ms)
    assert other > mine


@given(ARRIVALS, st.randoms(use_true_random=False), ENDS, st.integers(1, 4), st.floats(0.5, 4))
def test_a_line_holds_what_waits(
    asked: list[tuple[float, float, float]],
    order: object,
    ends: list[float],
    width: int,
    pace: float,
) -> None:
    """The wait is the rest of what runs and all work with an earlier turn, side by side; and all leaves again."""
    line = Line()
    waiting = [
        (turn_s(at_s, place_ms=place, work_ms=work_ms), work_ms) for at_s, place, work_ms in asked
    ]
    for one in waiting:
        line.add(*one)
    for number, end_s in enumerate(ends):
        line.begin(number, end_s)
    now_s = 2.0
    lefts_ms = [abs(end_s - now_s) * 1000 for end_s in ends]
    for turn in [0.0, 3.0, *(turn for turn, _ in waiting), 1e6]:
        ahead = [work_ms for other, work_ms in waiting if other <= turn]
        expected = (pace * sum(ahead) + sum(lefts_ms)) / width
        if not ahead:
            expected = 0.0 if len(ends) < width else min(lefts_ms)
        assert line.ahead_ms(turn) == pytest.approx(sum(ahead))
        found = line.wait_ms(pace * line.ahead_ms(turn), now_s=now_s, width=width)
        assert found == pytest.approx(expected)
    assert line.work_ms == pytest.approx(sum(work_ms for _, work_ms in waiting))
    order.shuffle(waiting)  # type: ignore[attr-defined]
    for one in waiting:
        line.remove(*one)
    for number in range(len(ends)):
        line.end(number)
    assert len(line) == line.work_ms == line.ahead_ms(1e6) == 0
    assert line.wait_ms(0.0, now_s=now_s, width=1) == 0


@given(ARRIVALS, ENDS, st.integers(1, 4), st.floats(0, 20), st.floats(0, 20))
def test_a_later_turn_waits_longer(
    asked: list[tuple[float, float, float]], ends: list[float], width: int, one: float, more: float
) -> None:
    """And nobody waits less for what others add."""
    line = Line()
    for at_s, place_ms, work_ms in asked[1:]:
        line.add(turn_s(at_s, place_ms=place_ms, work_ms=work_ms), work_ms)
    for number, end_s in enumerate(ends):
        line.begin(number, end_s)

    def wait_ms(turn: float) -> float:
        return line.wait_ms(line.ahead_ms(turn), now_s=0.0, width=width)

    early, late = wait_ms(one), wait_ms(one + more)
    assert late >= early - 1e-9
    at_s, place_ms, work_ms = asked[0]
    line.add(turn_s(at_s, place_ms=place_ms, work_ms=work_ms), work_ms)
    if ends or len(line) > 1:
        assert wait_ms(one) >= early - 1e-9


def test_what_cannot_make_it_need_not_be_sent() -> None:
    """Unless it were faster than its profile by more than engines ever are."""
    assert can_make_it(20.0, alone_ms=20.0)
    assert not can_make_it(20.0, alone_ms=30.0)
    assert can_make_it(float("inf"), alone_ms=1e6)


@given(*[st.floats(0, 5000)] * 2, *[st.floats(0, 5)] * 2, st.floats(1, 1000))
def test_who_comes_meanwhile_makes_a_wait_longer(
    wait_ms: float, turns_ms: float, load: float, more: float, typical_ms: float
) -> None:
    """The more, the more work comes and the later my turn is; by no more than comes until my turn."""

    def grown_ms(load: float, turns_ms: float) -> float:
        return with_overtakers_ms(wait_ms, load=load, turns_ms=turns_ms, typical_ms=typical_ms)

    found_ms = grown_ms(load, turns_ms)
    assert wait_ms <= found_ms <= (wait_ms + load * turns_ms) * (1 + 1e-9)
    least_ms = pytest.approx(found_ms)
    for later_ms in (grown_ms(load + more, turns_ms), grown_ms(load, turns_ms + 100 * more)):
        assert later_ms > found_ms or later_ms == least_ms


@pytest.mark.parametrize(
    ("load", "turns_ms", "found_ms"),
    [(0.0, 500, 100), (0.5, 1e9, 200), (2.0, 1000, 1900), (0.5, 1e-6, 100)],
)
def test_a_wait_grows_until_all_who_go_first_are_done(
    load: float, turns_ms: float, found_ms: float
) -> None:
    """Half the cores' work comes: a queue's double wait; more than can be done: all of it that comes until then."""
    grown_ms = with_overtakers_ms(100.0, load=load, turns_ms=turns_ms, typical_ms=100.0)
    assert grown_ms == pytest.approx(found_ms, rel=0.001)
