"""The forecast of one variant beside its wait: the request's own service, at the measured pace."""

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
)
from tests.policy.profiles import profile_of

TOKENS = st.integers(1, 100_000)
PACES = st.floats(0.25, 16)
PROFILES = st.builds(
    profile_of,
    base_ms=st.floats(0, 50),
    per_token_ms=st.floats(0.001, 5),
    batch_tokens=st.integers(1, 4096),
)
JOINING = st.just(0.0) | st.floats(0, 10_000)
ROUNDED = 1e-9


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


def test_service_is_the_batch_at_the_pace() -> None:
    """With nobody to join: pace times the batch."""
    assert service_of(fit_of(profile_of()), 64, 1.5) == pytest.approx(1.5 * 34)


@pytest.mark.parametrize(
    ("tokens", "come", "joining"),
    [
        pytest.param(32, 17, 17, id="as many as come during the wait"),
        pytest.param(32, 100, 32, id="as many as have room"),
        pytest.param(64, 100, 0, id="none in a full batch"),
        pytest.param(32, 0, 0, id="none where none come"),
    ],
)
def test_those_who_join_my_batch_make_it_longer(tokens: int, come: int, joining: float) -> None:
    """Each token of theirs costs what one of mine does."""
    fit = fit_of(profile_of())
    alone = service_of(fit, tokens, 2.0)
    assert alone == pytest.approx(2 * (2 + tokens * 0.5))
    assert service_of(fit, tokens, 2.0, come) - alone == pytest.approx(2 * 0.5 * joining)


@given(PROFILES, JOINING, TOKENS, st.integers(1, 100_000), PACES)
def test_service_grows_with_tokens(
    profile: Profile, joining: float, tokens: int, more: int, pace: float
) -> None:
    """A longer request never has the shorter service."""
    fit = fit_of(profile)
    short = service_of(fit, tokens, pace, joining)
    assert service_of(fit, tokens + more, pace, joining) >= short * (1 - ROUNDED)


@given(PROFILES, JOINING, TOKENS, PACES, st.floats(1, 4))
def test_a_slower_pace_never_shortens_a_service(
    profile: Profile, joining: float, tokens: int, pace: float, slower: float
) -> None:
    """All of it stretches with the pace, and takes some time."""
    fit = fit_of(profile)
    fast = service_of(fit, tokens, pace, joining)
    assert fast > 0
    assert service_of(fit, tokens, pace * slower, joining) >= fast * (1 - ROUNDED)


@given(st.floats(0, 1e6), TOKENS)
def test_every_forecast_has_a_bin(batches: float, tokens: int) -> None:
    """One of load times size; those of an idle variant, 0, are apart from all others."""
    assert 1 <= load_bin(batches) < LOAD_BINS
    assert 0 <= size_bin(tokens) < SIZE_BINS


def test_the_median_is_the_wait_and_the_service() -> None:
    """A forecast holds the two apart, and adds them up."""
    assert math.isclose(Forecast(3.0, 4.0, 9.0).p50_ms, 7.0)
