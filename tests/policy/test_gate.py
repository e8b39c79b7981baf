"""The gate: shut to no one in quiet, to most when the router cannot keep up, and to nobody for ever."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.gate import (
    INTERVAL_S,
    LEAST_TARGET_MS,
    MISSES,
    MOST,
    MOST_TARGET_MS,
    OF_THE_TIGHTEST,
    REMEMBERED_S,
    Gate,
)

STEP_S = 0.005
TIGHT_MS = 100.0
TARGET_MS = OF_THE_TIGHTEST * TIGHT_MS


def _gate(seed: int = 0) -> Gate:
    gate = Gate(draw=random.Random(seed).random)  # noqa: S311
    gate.saw(TIGHT_MS, now_s=0.0)
    return gate


def _ask(
    gate: Gate, lag_ms: float, *, from_s: float, seconds: float, miss_share: float = 0.5
) -> list[bool]:
    """Whether each of the requests that come for so long is turned away."""
    return [
        gate.turns_away(lag_ms, miss_share=miss_share, now_s=from_s + STEP_S * i)
        for i in range(round(seconds / STEP_S))
    ]


@given(st.floats(0, 1e5), st.floats(0, 1), st.floats(0, INTERVAL_S - 2 * STEP_S))
def test_a_single_stall_turns_nobody_away(lag_ms: float, miss_share: float, seconds: float) -> None:
    """However long the lag and whatever is missed, while it stands for less than the interval."""
    gate = _gate()
    quiet = _ask(gate, 1.0, from_s=0, seconds=0.2)
    spike = _ask(gate, lag_ms, from_s=0.2, seconds=seconds, miss_share=miss_share)
    after = _ask(gate, 1.0, from_s=0.2 + seconds, seconds=1, miss_share=miss_share)
    assert not any(quiet + spike + after)


@given(
    st.lists(
        st.tuples(st.floats(0, 1e5), st.floats(0, INTERVAL_S - 2 * STEP_S), st.booleans()),
        max_size=20,
    )
)
def test_stalls_again_and_again_turn_nobody_away(stalls: list[tuple[float, float, bool]]) -> None:
    """As long as the router catches up between them, or nobody comes meanwhile."""
    gate, now_s = _gate(), 0.0
    for lag_ms, seconds, silent in stalls:
        assert not any(_ask(gate, lag_ms, from_s=now_s, seconds=seconds))
        now_s += seconds
        if silent:
            now_s += 2.0
        else:
            assert not gate.turns_away(0.0, miss_share=0.5, now_s=now_s)
            now_s += STEP_S


@given(st.floats(0, 1e5), st.floats(0, MISSES))
def test_a_router_that_serves_all_in_time_turns_nobody_away(
    lag_ms: float, miss_share: float
) -> None:
    """At the start, or with budgets that bear the lag, it is no trouble however long it stands."""
    assert not any(_ask(_gate(), lag_ms, from_s=0, seconds=10, miss_share=miss_share))


def test_while_the_lag_stands_more_and_more_are_turned_away() -> None:
    """Within a third of a second nearly all, at twice the target; the sooner, the longer the lag."""
    shares = {}
    for times in (2, 4):
        gate = _gate()
        for step in range(15):
            _ask(gate, times * TARGET_MS, from_s=step * 0.01, seconds=0.01)
        shares[times] = gate.share
        _ask(gate, times * TARGET_MS, from_s=0.15, seconds=0.18)
        assert gate.share == pytest.approx(MOST)
    assert shares[2] == pytest.approx(0.5, abs=0.1)
    assert shares[4] > shares[2]


def test_once_the_lag_is_gone_all_come_in_again() -> None:
    """Within a second, from the most."""
    gate = _gate()
    _ask(gate, 1000.0, from_s=0, seconds=10)
    assert gate.share == MOST
    _ask(gate, 1.0, from_s=10, seconds=1)
    assert not any(_ask(gate, 1.0, from_s=11, seconds=5))


@given(st.integers(0, 1000))
def test_nobody_is_turned_away_for_ever(seed: int) -> None:
    """In the worst overload a client that comes again and again comes in: one in twenty does."""
    gate = _gate(seed)
    turned = _ask(gate, 1e4, from_s=0, seconds=20)
    late = turned[len(turned) // 2 :]
    assert sum(late) / len(late) == pytest.approx(MOST, abs=0.03)
    longest = max(map(len, "".join("x" if t else " " for t in late).split()))
    assert longest < 300


def test_the_lag_that_is_borne_follows_the_tightest_budget() -> None:
    """A quarter of it, within limits; once it is no longer asked for, another takes its place."""
    gate = Gate(draw=random.Random(0).random)  # noqa: S311
    assert gate.target_ms == MOST_TARGET_MS
    for budget_ms, now_s, target_ms in (
        (None, 0, MOST_TARGET_MS),
        (400, 1, 100),
        (100, 2, 25),
        (400, 3, 25),
        (1, 4, LEAST_TARGET_MS),
        (400, 4.1 + REMEMBERED_S, 100),
    ):
        gate.saw(budget_ms, now_s=now_s)
        assert gate.target_ms == target_ms
