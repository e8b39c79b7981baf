"""The forecast of one variant: the tokens ahead, then the request's own, at the measured pace."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.manifest import Profile
from serve_app.policy.forecast import batches_ms, forecast
from serve_app.policy.load import Load

TOKENS = st.integers(1, 100_000)
QUEUES = st.integers(0, 100_000)


def _profile(
    base_ms: float = 2.0, per_token_ms: float = 0.5, spread: float = 1.5, batch_tokens: int = 64
) -> Profile:
    return Profile(
        hardware="a test",
        device="cpu",
        threads=1,
        base_ms=base_ms,
        per_token_ms=per_token_ms,
        spread=spread,
        batch_tokens=batch_tokens,
        grid=(),
        load_ms=0.0,
        resident_bytes=0,
    )


def _load(inflight_tokens: int = 0, replicas: int = 1, hop_ms: float = 0.0) -> Load:
    return Load(inflight_tokens=inflight_tokens, replicas=replicas, hop_ms=hop_ms)


PROFILES = st.builds(
    _profile,
    base_ms=st.floats(0, 50),
    per_token_ms=st.floats(0.001, 5),
    spread=st.floats(1, 3),
    batch_tokens=st.integers(1, 4096),
)
LOADS = st.builds(
    _load, inflight_tokens=QUEUES, replicas=st.integers(1, 8), hop_ms=st.floats(0, 50)
)


@pytest.mark.parametrize(
    ("tokens", "expected_ms"), [(0, 0), (1, 2.5), (64, 34), (65, 36.5), (128, 68), (32.5, 18.25)]
)
def test_each_started_batch_costs_its_base(tokens: float, expected_ms: float) -> None:
    """Full batches and one rest pay the base once each, and every token its share."""
    assert batches_ms(_profile(), tokens) == pytest.approx(expected_ms)


def test_an_idle_variant_takes_its_service_time() -> None:
    """With nothing ahead there is no wait; p95 is the spread on the engine and twice the hop."""
    found = forecast(_profile(), _load(hop_ms=3.0), tokens=64)
    assert found.wait_ms == 0
    assert found.service_ms == pytest.approx(34 + 3)
    assert found.p50_ms == pytest.approx(37)
    assert found.p95_ms == pytest.approx(34 * 1.5 + 2 * 3)


def test_the_tokens_ahead_are_shared_by_the_replicas() -> None:
    """Two replicas halve the wait, and p95 spreads the wait as well."""
    found = forecast(_profile(), _load(inflight_tokens=256, replicas=2), tokens=64)
    assert found.wait_ms == pytest.approx(68)
    assert found.p50_ms == pytest.approx(68 + 34)
    assert found.p95_ms == pytest.approx((68 + 34) * 1.5)


@given(PROFILES, LOADS, TOKENS, TOKENS)
def test_more_tokens_take_longer(profile: Profile, load: Load, tokens: int, more: int) -> None:
    """A longer request never has the shorter forecast, at the median or at p95."""
    small = forecast(profile, load, tokens=tokens)
    large = forecast(profile, load, tokens=tokens + more)
    assert large.p50_ms > small.p50_ms
    assert large.p95_ms > small.p95_ms


@given(PROFILES, TOKENS, QUEUES, st.integers(1, 100_000), st.integers(1, 8))
def test_a_longer_queue_takes_longer(
    profile: Profile, tokens: int, queued: int, more: int, replicas: int
) -> None:
    """More tokens in flight ahead raise the wait, and with it median and p95."""
    short = forecast(profile, _load(queued, replicas), tokens=tokens)
    long = forecast(profile, _load(queued + more, replicas), tokens=tokens)
    assert long.wait_ms > short.wait_ms
    assert long.p50_ms > short.p50_ms
    assert long.p95_ms > short.p95_ms


@given(PROFILES, LOADS, TOKENS)
def test_another_replica_never_slows(profile: Profile, load: Load, tokens: int) -> None:
    """The wait with one replica more is at most the wait without."""
    more = _load(load.inflight_tokens, load.replicas + 1, load.hop_ms)
    assert forecast(profile, more, tokens=tokens).wait_ms <= (
        forecast(profile, load, tokens=tokens).wait_ms * (1 + 1e-9)
    )


@given(PROFILES, LOADS, TOKENS)
def test_p95_is_never_below_the_median(profile: Profile, load: Load, tokens: int) -> None:
    """A spread of at least 1 and the doubled hop keep the order of the two."""
    found = forecast(profile, load, tokens=tokens)
    assert found.p95_ms >= found.p50_ms * (1 - 1e-9)
