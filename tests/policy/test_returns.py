"""Times to come back: spread over what there is room for, later the longer an overload lasts."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.returns import (
    JITTER,
    LEAST_RATE,
    LEAST_RETRY_S,
    MOST_RETRY_S,
    RETURNS,
    Returns,
)


def _returns(draw: float = 0.0) -> Returns:
    return Returns(draw=lambda: draw)


def _serve(returns: Returns, rate: int, *, seconds: int) -> float:
    """Answers at a rate; returns when that ended."""
    for i in range(rate * seconds):
        returns.answered(now_s=i / rate)
    return float(seconds)


def test_the_first_comes_back_soon() -> None:
    """Where nobody was refused before, after the least time."""
    assert _returns().next_s(now_s=5.0) == pytest.approx(LEAST_RETRY_S)


@pytest.mark.parametrize("rate", [20, 200])
def test_who_is_refused_comes_back_at_a_part_of_the_rate_of_answers(rate: int) -> None:
    """A hundred refused at once are told times that lie evenly apart."""
    returns = _returns()
    now_s = _serve(returns, rate, seconds=60)
    told = [returns.next_s(now_s=now_s) for _ in range(20)]
    apart = [later - sooner for sooner, later in pairwise(told)]
    assert apart == pytest.approx([1 / (RETURNS * rate)] * 19, rel=0.1)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300), st.floats(0, 1))
def test_times_are_within_bounds(passed_s: list[float], draw: float) -> None:
    """Whatever happened before: no sooner than the least, no later than the most and its jitter."""
    returns, now_s = _returns(draw), 0.0
    for step_s in passed_s:
        now_s += step_s
        for _ in range(5):
            assert returns.next_s(now_s=now_s) >= LEAST_RETRY_S * 0.999
            assert returns.next_s(now_s=now_s) <= MOST_RETRY_S * (1 + JITTER) * 1.001


def test_a_longer_overload_sends_clients_further_away() -> None:
    """Until the schedule has been kept, those who come new go to its end; then it begins anew."""
    returns = _returns()
    told = [returns.next_s(now_s=0.1 * i) for i in range(5)]
    assert told == sorted(told)
    assert told[-1] > told[0] + 3 / (RETURNS * LEAST_RATE)
    assert returns.next_s(now_s=1000.0) == pytest.approx(LEAST_RETRY_S)


def test_times_are_jittered() -> None:
    """Two routers that tell the same time do not send their clients back at once."""
    draws = random.Random(0)  # noqa: S311
    returns = Returns(draw=draws.random)
    told = {returns.next_s(now_s=0.0) / _returns().next_s(now_s=0.0) for _ in range(10)}
    assert len(told) == 10
