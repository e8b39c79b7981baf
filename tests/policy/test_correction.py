"""The online 95th percentile and median: where it settles, what it learns of, and how it forgets."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.correction import (
    LEAST,
    LEAST_MEDIAN,
    MISSES,
    MOST,
    RELAXES_S,
    STALE_S,
    Correction,
)

PRIOR = math.log(1.2)
BIN = 2


def _correction(bins: int = 4) -> Correction:
    return Correction.of_p95(spread=1.2, bins=bins)


def _teach(
    correction: Correction, log_ratio: float, *, times: int = 1, is_over: bool = True
) -> None:
    for _ in range(times):
        correction.learn(BIN, log_ratio=log_ratio, now_s=0.0, is_over=is_over)


@pytest.mark.parametrize("factor", [1.0, 1.6])
@pytest.mark.parametrize("sigma", [0.1, 0.2])
def test_p95_holds_for_95_of_100(factor: float, sigma: float) -> None:
    """P(actual <= p95) is 0.95 ± 0.02 on fresh draws, also when all takes 1.6 times the forecast."""
    rng, correction = random.Random(1), _correction()  # noqa: S311

    def draw() -> float:
        return math.log(factor) + rng.gauss(0, sigma)

    for _ in range(3000):
        correction.learn(BIN, log_ratio=draw(), now_s=0.0)
    within = 0
    for _ in range(5000):
        log_ratio = draw()
        within += log_ratio <= correction.theta(BIN, 0.0)
        correction.learn(BIN, log_ratio=log_ratio, now_s=0.0)
    assert within / 5000 == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.6])
def test_the_median_holds_for_half(factor: float) -> None:
    """P(actual <= median) is 0.5 ± 0.05 on fresh draws, whatever the forecast is off by."""
    rng, median = random.Random(1), Correction.of_median(bins=4)  # noqa: S311
    within = 0
    for number in range(6000):
        log_ratio = math.log(factor) + rng.gauss(0, 0.2)
        within += number >= 1000 and log_ratio <= median.theta(BIN, 0.0)
        median.learn(BIN, log_ratio=log_ratio, now_s=0.0)
    assert within / 5000 == pytest.approx(0.5, abs=0.05)


@given(st.floats(-20, 1))
def test_what_is_given_up_before_the_median_says_nothing_of_it(log_ratio: float) -> None:
    """It might have taken any longer time; beyond the median it raises it."""
    median = Correction.of_median(bins=4)
    median.learn(BIN, log_ratio=log_ratio, now_s=0.0, is_over=False)
    theta = median.theta(BIN, 0.0)
    assert theta == 0.0 if log_ratio <= 0 else theta > 0.0


def test_the_median_has_a_least() -> None:
    """A fifth of the forecast: below, it would let anything in."""
    median = Correction.of_median(bins=4)
    for _ in range(5000):
        median.learn(BIN, log_ratio=-9.0, now_s=0.0)
    assert median.theta(BIN, 0.0) == pytest.approx(LEAST_MEDIAN)


def test_an_untouched_correction_is_the_profiles_spread() -> None:
    """Nothing is known but the profile; a spread below 1.1 is not believed."""
    assert _correction().theta(BIN, 0.0) == pytest.approx(PRIOR)
    assert Correction.of_p95(spread=1.0, bins=1).theta(0, 0.0) == pytest.approx(math.log(1.1))


def test_a_miss_raises_p95_much_and_a_hit_lowers_it_little() -> None:
    """One late one in so many as are to miss keeps it where it is."""
    missed, hit = _correction(), _correction()
    _teach(missed, 1.0)
    _teach(hit, 0.0)
    up, down = missed.theta(BIN, 0.0) - PRIOR, PRIOR - hit.theta(BIN, 0.0)
    assert up == pytest.approx((1 - MISSES) / MISSES * down)
    assert down > 0


@given(st.floats(-20, 0))
def test_a_client_that_hangs_up_at_once_teaches_nothing(log_ratio: float) -> None:
    """Given up before its median, a request might still have been in time or late."""
    correction = _correction()
    _teach(correction, log_ratio, times=50, is_over=False)
    assert correction.theta(BIN, 0.0) == pytest.approx(PRIOR)


@pytest.mark.parametrize("beyond", [0.001, 1.0])
def test_what_was_given_up_beyond_p95_counts_in_full(beyond: float) -> None:
    """A timed-out request at or beyond its p95 is as late as one that was answered then."""
    given_up, answered = _correction(), _correction()
    _teach(given_up, PRIOR + beyond, is_over=False)
    _teach(answered, PRIOR + beyond)
    assert given_up.theta(BIN, 0.0) == answered.theta(BIN, 0.0) > PRIOR


@given(st.floats(0.001, PRIOR), st.floats(0.001, PRIOR))
def test_the_later_it_was_given_up_the_more_it_counts(one: float, other: float) -> None:
    """From the median to p95 it raises p95 more and more, and never lowers it."""
    found = []
    for log_ratio in sorted((one, other)):
        correction = _correction()
        _teach(correction, log_ratio, is_over=False)
        found.append(correction.theta(BIN, 0.0))
    assert PRIOR < found[0] <= found[1]


def test_a_sparse_bin_is_the_variants() -> None:
    """What one bin learns raises the others too, and itself more."""
    correction = _correction()
    _teach(correction, 1.0, times=5)
    other = correction.theta(0, 0.0)
    assert PRIOR < other < correction.theta(BIN, 0.0)


def test_a_silent_bin_relaxes_to_the_prior() -> None:
    """A variant that was slow once is asked again: at first nothing fades, then all of it does."""
    correction = _correction()
    _teach(correction, 1.0, times=5)
    learned = correction.theta(BIN, 0.0)
    assert correction.theta(BIN, STALE_S) == learned
    fading = [correction.theta(BIN, STALE_S + i) for i in range(60)]
    assert fading == sorted(fading, reverse=True)
    assert fading[round(RELAXES_S)] < PRIOR + (learned - PRIOR) / 2
    assert fading[-1] == pytest.approx(PRIOR, abs=0.01)


def test_what_is_learned_after_a_silence_starts_from_what_is_left() -> None:
    """A single hit long after does not bring the old lateness back."""
    correction = _correction()
    _teach(correction, 1.0, times=10)
    correction.learn(BIN, log_ratio=0.0, now_s=100.0)
    assert correction.theta(BIN, 100.0) == pytest.approx(PRIOR, abs=0.01)


@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans(), st.floats(0, 5)), max_size=200))
def test_p95_stays_within_its_bounds(outcomes: list[tuple[float, bool, float]]) -> None:
    """Whatever happens, a variant stays one that may be asked."""
    correction, now_s = _correction(), 0.0
    for log_ratio, is_over, passed_s in outcomes:
        now_s += passed_s
        correction.learn(BIN, log_ratio=log_ratio, now_s=now_s, is_over=is_over)
        assert LEAST <= correction.theta(BIN, now_s) <= MOST
        assert LEAST <= correction.theta(0, now_s) <= MOST


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(-1, 2), st.floats(0, 8)), max_size=30),
    st.floats(0, 8),
)
def test_a_kept_factor_is_the_one_that_would_be_worked_out(
    news: list[tuple[int, float, float]], silent_s: float
) -> None:
    """However often it is asked for, whatever came between, and after any silence."""
    correction, now_s = _correction(), 0.0
    for number, log_ratio, passed_s in [*news, (0, 0.0, silent_s)]:
        now_s += passed_s
        for asked in range(4):
            expected = math.exp(correction.theta(asked, now_s))
            assert correction.factor(asked, now_s) == correction.factor(asked, now_s) == expected
        correction.learn(number, log_ratio=log_ratio, now_s=now_s)
