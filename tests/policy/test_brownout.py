"""The level of brownout: up while many miss, down after a long clean while."""

import pytest

from serve_app.policy.brownout import CLEAN_S, FEWEST, WINDOW_S, Brownout

STEP_S = 0.05
FLOORS = [1.0, 0.9995, 0.985, 0.96]


@pytest.fixture
def brownout() -> Brownout:
    return Brownout(floor=0.99, fidelities=FLOORS)


def _tell(
    brownout: Brownout, misses: float, *, from_s: float, seconds: float
) -> tuple[float, list[int]]:
    """One outcome each twentieth of a second, a share of them missed; returns the end, and levels."""
    levels, debt = [], 0.0
    for i in range(round(seconds / STEP_S)):
        debt += misses
        missed = debt >= 1
        debt -= missed
        brownout.tell(missed=missed, now_s=from_s + i * STEP_S)
        levels.append(brownout.level)
    return from_s + seconds, levels


def test_the_level_rises_step_by_step_while_many_miss(brownout: Brownout) -> None:
    """One step a window, down to the cheapest variant's fidelity, and no further."""
    _, levels = _tell(brownout, 0.5, from_s=100, seconds=10 * WINDOW_S)
    assert levels == sorted(levels)
    assert sorted(set(levels)) == [0, 1, 2, 3]
    assert levels.index(3) - levels.index(2) >= WINDOW_S / STEP_S - 1
    assert brownout.floor == 0.96


def test_each_level_takes_the_floor_one_fidelity_down(brownout: Brownout) -> None:
    """At level 1 it still is the default's: then the cheapest above it is taken."""
    found = []
    for level in range(4):
        brownout.level = level
        found.append(brownout.floor)
    assert found == [0.99, 0.99, 0.985, 0.96]


@pytest.mark.parametrize("misses", [0.0, 0.03])
def test_a_few_misses_do_not_raise_it(brownout: Brownout, misses: float) -> None:
    """Up to a share of 5 % nothing is given up."""
    _, levels = _tell(brownout, misses, from_s=100, seconds=60)
    assert set(levels) == {0}


def test_few_outcomes_say_nothing(brownout: Brownout) -> None:
    """A handful of misses in a window is no trend."""
    for i in range(FEWEST - 1):
        brownout.tell(missed=True, now_s=100 + i * STEP_S)
    assert (brownout.level, brownout.miss_share) == (0, 1.0)


def test_it_falls_only_after_a_long_clean_while(brownout: Brownout) -> None:
    """Down by one step each half minute without misses, never at once."""
    now_s, _ = _tell(brownout, 0.5, from_s=100, seconds=2.5 * WINDOW_S)
    reached = brownout.level
    assert reached >= 2
    _, levels = _tell(brownout, 0.0, from_s=now_s, seconds=(reached + 1) * (CLEAN_S + WINDOW_S))
    assert levels == sorted(levels, reverse=True)
    assert levels[: round(CLEAN_S / STEP_S)].count(reached) == round(CLEAN_S / STEP_S)
    assert levels[-1] == 0
    assert sorted(set(levels)) == list(range(reached + 1))


def test_between_the_thresholds_it_stays(brownout: Brownout) -> None:
    """A share of 3 % neither raises nor lowers: no flapping."""
    now_s, _ = _tell(brownout, 0.5, from_s=100, seconds=1.2 * WINDOW_S)
    now_s, _ = _tell(brownout, 0.03, from_s=now_s, seconds=2 * WINDOW_S)
    level = brownout.level
    assert level >= 1
    _, levels = _tell(brownout, 0.03, from_s=now_s, seconds=4 * CLEAN_S)
    assert set(levels) == {level}


def test_it_falls_though_nobody_asks(brownout: Brownout) -> None:
    """Time alone heals it, as looking at it shows."""
    now_s, _ = _tell(brownout, 0.5, from_s=100, seconds=1.2 * WINDOW_S)
    assert brownout.level == 1
    brownout.look(now_s=now_s + CLEAN_S - 1)
    assert brownout.level == 1
    brownout.look(now_s=now_s + CLEAN_S)
    assert (brownout.level, brownout.miss_share) == (0, 0.0)
