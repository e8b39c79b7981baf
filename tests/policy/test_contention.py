"""Engines that share cores: what is assumed, what is learned, and what a stall does not teach."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.contention import LEAST_PACE, MOST_BUSY, MOST_PACE, OUTLIER, Contention


def _pace(contention: Contention, busy: int) -> float:
    return contention.at(busy)[0]


def _hop_ms(contention: Contention, busy: int) -> float:
    return contention.at(busy)[1]


@pytest.mark.parametrize(
    ("busy", "pace"), [(0, 1), (1, 1), (2, 1), (3, 1.5), (6, 3), (MOST_BUSY + 9, MOST_BUSY / 2)]
)
def test_until_learned_engines_share_the_cores_evenly(busy: int, pace: float) -> None:
    """`n` busy engines on two cores run at n / 2, and never faster than alone; a hop takes no time."""
    assert Contention(cores=2).at(busy) == (pace, 0.0)


def test_the_pace_is_learned_by_how_many_are_busy() -> None:
    """What three engines do to each other says nothing of two or four."""
    contention = Contention(cores=2)
    for _ in range(200):
        contention.learn(3, pace=2.5, hop_ms=1.0)
    assert _pace(contention, 3) == pytest.approx(2.5, rel=0.01)
    assert (_pace(contention, 2), _pace(contention, 4)) == (1, 2)


def test_a_change_is_learned_however_much_was_seen() -> None:
    """The newest observations always weigh a twentieth at least."""
    contention = Contention(cores=2)
    for pace in (1.0, 3.0):
        for _ in range(200):
            contention.learn(2, pace=pace, hop_ms=1.0)
    assert _pace(contention, 2) == pytest.approx(3, rel=0.01)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_a_pace_stays_within_its_bounds(paces: list[float]) -> None:
    """A batch that was measured absurdly does not make a forecast absurd."""
    contention = Contention(cores=1)
    for pace in paces:
        contention.learn(1, pace=pace, hop_ms=1.0)
        assert LEAST_PACE <= _pace(contention, 1) <= MOST_PACE


def test_a_hop_that_nobody_knows_is_the_nearest_known() -> None:
    """As with fewer busy engines where that is known, else as with more."""
    contention = Contention(cores=2)
    contention.learn(2, pace=1.0, hop_ms=5.0)
    contention.learn(4, pace=1.0, hop_ms=9.0)
    assert [_hop_ms(contention, busy) for busy in range(6)] == [5, 5, 5, 5, 9, 9]


@pytest.mark.parametrize("stall_ms", [100.0, 10_000.0])
def test_a_stall_of_the_router_does_not_move_the_hop_beyond_its_clip(stall_ms: float) -> None:
    """One call counts as three usual ones at most, however long it stood; a lasting change is learned."""
    contention = Contention(cores=2)
    for _ in range(100):
        contention.learn(1, pace=1.0, hop_ms=2.0)
    contention.learn(1, pace=1.0, hop_ms=stall_ms)
    assert 2 < _hop_ms(contention, 1) <= 2 + 0.05 * (OUTLIER * 2 + 1 - 2) + 1e-9
    for _ in range(300):
        contention.learn(1, pace=1.0, hop_ms=stall_ms)
    assert _hop_ms(contention, 1) == pytest.approx(stall_ms, rel=0.01)


def test_the_least_pace_is_of_those_that_were_seen() -> None:
    """As fast as engines get here, with whatever else runs; until then, as their profiles say."""
    contention = Contention(cores=2)
    assert contention.least_pace == 1
    for busy, pace in ((2, 1.6), (1, 1.3), (3, 2.0)):
        for _ in range(200):
            contention.learn(busy, pace=pace, hop_ms=1.0)
    assert contention.least_pace == pytest.approx(1.3, rel=0.01)
    for _ in range(200):
        contention.learn(2, pace=0.5, hop_ms=1.0)
    assert contention.least_pace == pytest.approx(0.5, rel=0.02)
