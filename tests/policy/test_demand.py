"""What each variant is wanted for, in engines."""

import pytest

from serve_app.policy.demand import WINDOW_S, Demand


def _steady(demand: Demand, *, wanted_ms: float, sent_ms: float, seconds: float = 60) -> float:
    """Ten requests a second; returns when that ended."""
    for i in range(round(seconds * 10)):
        demand.wanted("best", wanted_ms, now_s=i / 10)
        demand.sent("best", sent_ms, now_s=i / 10)
    return seconds


@pytest.mark.parametrize(("wanted_ms", "sent_ms"), [(50, 0), (50, 20), (20, 50)])
def test_demand_is_the_engines_kept_busy(wanted_ms: float, sent_ms: float) -> None:
    """50 ms ten times a second are half an engine, by what was wanted or what was sent."""
    demand = Demand(["best", "cheap"])
    now_s = _steady(demand, wanted_ms=wanted_ms, sent_ms=sent_ms)
    assert demand.busy("best", now_s=now_s) == pytest.approx(0.5, rel=0.05)
    assert demand.busy("cheap", now_s=now_s) == 0


def test_demand_fades_once_nobody_asks() -> None:
    """After a few windows there is next to none."""
    demand = Demand(["best"])
    now_s = _steady(demand, wanted_ms=50, sent_ms=0)
    found = [demand.busy("best", now_s=now_s + i * WINDOW_S) for i in range(6)]
    assert found == sorted(found, reverse=True)
    assert found[5] < 0.01 * found[0]


def test_a_clock_that_steps_back_raises_nothing() -> None:
    """Demand never grows from time."""
    demand = Demand(["best"])
    demand.wanted("best", 100, now_s=10)
    before = demand.busy("best", now_s=10)
    assert demand.busy("best", now_s=9) == before
