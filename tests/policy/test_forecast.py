"""The forecast of one variant: the tokens ahead, then the request's own, at the measured pace."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.manifest import Profile
from serve_app.policy.forecast import (
    LOAD_BINS,
    SIZE_BINS,
    Forecast,
    batches_ms,
    fit_of,
    load_bin,
    service_of,
    size_bin,
    wait_of,
)
from tests.policy.profiles import profile_of

TOKENS = st.integers(1, 100_000)
AHEAD = st.floats(0, 100_000)
PACES = st.floats(0.25, 16)
PROFILES = st.builds(
    profile_of,
    base_ms=st.floats(0, 50),
    per_token_ms=st.floats(0.001, 5),
    batch_tokens=st.integers(1, 4096),
)
QUEUES = st.none() | st.tuples(AHEAD, st.floats(0, 1000), st.floats(0, 10))
ROUNDED = 1e-9


def median(
    profile: Profile,
    queue: tuple[float, float, float] | None,
    tokens: int,
    pace: float,
    *,
    joiners: bool = True,
) -> tuple[float, float]:
    """Wait and service of a request that finds a queue: tokens ahead, ms run, tokens arriving a ms."""
    fit = fit_of(profile)
    if queue is None:
        return 0.0, service_of(fit, tokens, pace)
    ahead, running_ms, tokens_per_ms = queue
    wait_ms = wait_of(fit, ahead, running_ms, pace)
    return wait_ms, service_of(fit, tokens, pace, tokens_per_ms * wait_ms * joiners)


@pytest.mark.parametrize(
    ("tokens", "expected_ms"), [(0, 0), (1, 2.5), (64, 34), (65, 36.5), (128, 68), (32.5, 18.25)]
)
def test_each_started_batch_costs_its_base(tokens: float, expected_ms: float) -> None:
    """Full batches and one rest pay the base once each, and every token its share."""
    assert batches_ms(profile_of(), tokens) == pytest.approx(expected_ms)


@pytest.mark.parametrize(
    ("tokens", "texts", "expected_ms"),
    [(64, 1, 34), (213, 1, 108.5), (213, 2, 110.5), (213, 9, 114.5)],
)
def test_a_text_is_never_cut(tokens: int, texts: int, expected_ms: float) -> None:
    """A text beyond a batch's tokens is one batch: it pays the base once, and nobody joins it."""
    profile = profile_of()
    assert batches_ms(profile, tokens, texts=texts) == pytest.approx(expected_ms)
    assert service_of(fit_of(profile), tokens, 1.0, 0.0, texts) == pytest.approx(expected_ms)
    if texts == 1:
        assert service_of(fit_of(profile), tokens, 1.0, 50.0, texts) == pytest.approx(expected_ms)


def test_an_idle_variant_takes_its_service_time() -> None:
    """With nothing ahead there is no wait, and nobody to join: pace times the batch."""
    assert median(profile_of(), None, 64, 1.5) == pytest.approx((0, 1.5 * 34))


@pytest.mark.parametrize(
    ("running_ms", "wait_ms"),
    [
        pytest.param(0, 68, id="the batch has just begun"),
        pytest.param(10, 58, id="it has run for a while"),
        pytest.param(1000, 34, id="at most its own time has passed"),
    ],
)
def test_what_the_running_batch_has_had_is_not_waited_for(
    running_ms: float, wait_ms: float
) -> None:
    """Two full batches ahead, of which the first is in the engine."""
    assert median(profile_of(), (128, running_ms, 0), 64, 1.0)[0] == pytest.approx(wait_ms)


@pytest.mark.parametrize(
    ("tokens", "tokens_per_ms", "joining"),
    [
        pytest.param(32, 0.25, 17, id="as many as come during the wait of 68 ms"),
        pytest.param(32, 100, 32, id="as many as have room"),
        pytest.param(64, 100, 0, id="none in a full batch"),
        pytest.param(32, 0, 0, id="none where none come"),
    ],
)
def test_those_who_join_my_batch_make_it_longer(
    tokens: int, tokens_per_ms: float, joining: float
) -> None:
    """Each token of theirs costs what one of mine does; switched off, they cost nothing."""
    queue = (64.0, 0.0, tokens_per_ms)
    joined = median(profile_of(), queue, tokens, 2.0)[1]
    alone = median(profile_of(), queue, tokens, 2.0, joiners=False)[1]
    assert alone == pytest.approx(2 * (2 + tokens * 0.5))
    assert joined - alone == pytest.approx(2 * 0.5 * joining)


@given(PROFILES, QUEUES, TOKENS, st.integers(1, 100_000), PACES)
def test_forecasts_grow_with_tokens(
    profile: Profile, queue: tuple[float, float, float] | None, tokens: int, more: int, pace: float
) -> None:
    """A longer request never has the shorter forecast: its wait is the same, its service longer."""
    wait_ms, service_ms = median(profile, queue, tokens, pace)
    later_ms, longer_ms = median(profile, queue, tokens + more, pace)
    assert later_ms == wait_ms
    assert longer_ms >= service_ms * (1 - ROUNDED)


@given(PROFILES, TOKENS, AHEAD, st.floats(0.1, 100_000), st.floats(0, 10), PACES)
def test_forecasts_grow_with_what_is_ahead(
    profile: Profile, tokens: int, ahead: float, more: float, tokens_per_ms: float, pace: float
) -> None:
    """More tokens ahead raise the wait, and nobody serves a request faster for it."""
    short = median(profile, (ahead, 0.0, tokens_per_ms), tokens, pace)
    long = median(profile, (ahead + more, 0.0, tokens_per_ms), tokens, pace)
    assert long[0] > short[0]
    assert long[1] >= short[1]


@given(PROFILES, AHEAD, st.floats(0, 1000), TOKENS, PACES)
def test_a_wait_is_never_negative(
    profile: Profile, ahead: float, running_ms: float, tokens: int, pace: float
) -> None:
    """However long the batch in the engine has run, and also where all its requests have gone."""
    assert median(profile, (0.0, running_ms, 0.0), tokens, pace)[0] == 0
    wait_ms, service_ms = median(profile, (ahead, running_ms, 0.0), tokens, pace)
    assert wait_ms >= 0
    assert service_ms > 0


@given(PROFILES, QUEUES, TOKENS, PACES, st.floats(1, 4))
def test_a_slower_pace_never_shortens_a_forecast(
    profile: Profile,
    queue: tuple[float, float, float] | None,
    tokens: int,
    pace: float,
    slower: float,
) -> None:
    """What is ahead and what is mine both stretch with the pace."""
    fast, slow = (median(profile, queue, tokens, p) for p in (pace, pace * slower))
    assert slow[0] >= fast[0] * (1 - ROUNDED) - ROUNDED
    assert slow[1] >= fast[1] * (1 - ROUNDED)


@given(st.none() | AHEAD, st.integers(1, 4096), TOKENS)
def test_every_forecast_has_a_bin(ahead: float | None, batch_tokens: int, tokens: int) -> None:
    """One of load times size; those of an idle variant are apart from all others."""
    assert 0 <= load_bin(ahead, batch_tokens) < LOAD_BINS
    assert (load_bin(ahead, batch_tokens) == 0) == (ahead is None)
    assert 0 <= size_bin(tokens) < SIZE_BINS


def test_the_median_is_the_wait_and_the_service() -> None:
    """A forecast holds the two apart, and adds them up."""
    assert math.isclose(Forecast(3.0, 4.0, 9.0).p50_ms, 7.0)


@given(st.floats(0, 2000), st.floats(0, 200), st.floats(1, 4), st.floats(0, 20))
def test_a_gap_between_batches_is_waited_for_once_a_batch(
    ahead: float, running_ms: float, pace: float, gap_ms: float
) -> None:
    """A wait grows by no more than a gap for each batch ahead, and by all of them before the first ran."""
    fit = fit_of(profile_of())
    without = wait_of(fit, ahead, running_ms, pace)
    gaps_ms = gap_ms * -(-ahead // fit[2])
    grown_ms = wait_of(fit, ahead, running_ms, pace, gap_ms) - without
    assert -1e-6 <= grown_ms <= gaps_ms + 1e-6
    before = wait_of(fit, ahead, 0.0, pace, gap_ms) - wait_of(fit, ahead, 0.0, pace)
    assert before == pytest.approx(gaps_ms)
