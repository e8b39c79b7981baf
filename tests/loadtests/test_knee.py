"""The knee is found where it is known to be, and noise does not move it."""

from dataclasses import replace

import numpy as np
import pytest

from loadtests.knee import LEAST_ACHIEVED, collapsed, curve, find_knee
from loadtests.records import NOT_ADMITTED, OK, Row, to_columns
from tests.loadtests.synthetic import START_S, rows

SECONDS = 60


def _ramp(low: float = 5, high: float = 200, **options: object) -> list[Row]:
    return rows(
        "ramp",
        seconds=SECONDS,
        offered=lambda t: low + (high - low) * t / SECONDS,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("capacity", [40, 100, 160])
def test_the_knee_is_where_the_capacity_falls_short(capacity: int) -> None:
    """Over 15 seeds the middle knee is within a tenth of the load that exceeds the capacity by 5 %, none beyond a quarter."""
    knees = []
    for seed in range(15):
        found = curve(to_columns(_ramp(capacity=capacity, seed=seed)))
        assert found is not None
        assert find_knee(found).reached
        knees.append(find_knee(found).load_per_s)
    assert np.median(knees) == pytest.approx(capacity / LEAST_ACHIEVED, rel=0.1)
    assert knees == pytest.approx([capacity / LEAST_ACHIEVED] * 15, rel=0.25)


@pytest.mark.parametrize("stalls", [(3,), (5, 6), (4, 12, 20)])
def test_a_stall_is_no_knee(stalls: tuple[int, ...]) -> None:
    """Seconds in which a noisy machine missed every budget, far below the knee, do not move it."""
    noisy = _ramp(capacity=120, missed=lambda second, _: second in stalls)
    found = curve(to_columns(noisy))
    assert found is not None
    assert not found.good.all()
    assert find_knee(found).load_per_s == pytest.approx(120, rel=0.15)


def test_budgets_alone_make_a_knee() -> None:
    """A server that answers everything, but late from a load on, has its knee at that load."""

    def late(second: int, rng: np.random.Generator) -> bool:
        return bool(5 + 195 * second / SECONDS > 80 and rng.random() < 0.2)

    found = curve(to_columns(_ramp(missed=late)))
    assert found is not None
    assert find_knee(found).load_per_s == pytest.approx(80, rel=0.15)


def test_what_an_idle_server_refuses_is_no_miss() -> None:
    """Requests that are infeasible at any load do not count against the server."""
    late = [replace(r, within_budget=False) for r in _ramp() if r.hint_class == "tight"]
    counted = curve(to_columns(late))
    ignored = curve(to_columns([replace(r, feasible=False) for r in late]))
    assert counted is not None
    assert ignored is not None
    assert not counted.good.any()
    assert ignored.good.all()


def test_what_is_always_refused_is_no_knee() -> None:
    """A class that any server would refuse leaves the knee, and the end of the ramp, to the others."""
    refused = [
        replace(r, status=NOT_ADMITTED, within_budget=False, feasible=False)
        if r.hint_class == "tight"
        else r
        for r in _ramp()
    ]
    found = curve(to_columns(refused))
    assert found is not None
    assert not find_knee(found).reached
    mostly = to_columns([replace(r, status=NOT_ADMITTED) for r in refused[::2]] + refused[1::2])
    assert not collapsed(to_columns(refused), now_s=START_S + 30, share=0.9)
    assert collapsed(mostly, now_s=START_S + 30, share=0.9)


def _some_infeasible(ramp: list[Row], fate: str, share: float = 0.28) -> list[Row]:
    """A share of tight requests becomes infeasible; the server refuses them, or is late, or has luck."""
    rng = np.random.default_rng(3)
    fates: dict[str, dict[str, object]] = {
        "refused": {
            "status": NOT_ADMITTED,
            "variant": "",
            "fidelity": None,
            "within_budget": False,
        },
        "late": {"status": OK, "within_budget": False},
        "lucky": {"status": OK, "within_budget": True},
    }
    return [
        replace(r, feasible=False, **fates[fate])  # type: ignore[arg-type]
        if r.hint_class == "tight" and rng.random() < share
        else r
        for r in ramp
    ]


@pytest.mark.parametrize("capacity", [40, 100])
def test_infeasible_requests_leave_the_knee_where_it_is(capacity: int) -> None:
    """Whatever becomes of them, and of however many by chance in a second, no second is judged otherwise."""
    for seed in range(5):
        ramp = _ramp(capacity=capacity, seed=seed)
        whole = curve(to_columns(ramp))
        found = [curve(to_columns(_some_infeasible(ramp, f))) for f in ("refused", "late", "lucky")]
        assert whole is not None
        assert all(one is not None for one in found)
        knees = {find_knee(one).load_per_s for one in found if one is not None}
        assert len(knees) == 1
        assert knees.pop() == pytest.approx(find_knee(whole).load_per_s, rel=0.1)
    early = START_S + 60 * 0.6 * capacity / 200
    for fate in ("refused", "late", "lucky"):
        flagged = to_columns(_some_infeasible(ramp, fate))
        assert not collapsed(flagged, now_s=early, share=0.95)
        assert collapsed(flagged, now_s=START_S + 60)


def test_a_ramp_that_ends_too_early_says_so() -> None:
    """A server that keeps up to the end has its knee above, one that never does, below."""
    above = curve(to_columns(_ramp(high=80, capacity=1000)))
    below = curve(to_columns(_ramp(low=60, high=80, capacity=10)))
    assert above is not None
    assert below is not None
    assert not find_knee(above).reached
    assert "above" in str(find_knee(above))
    assert find_knee(below).below_ramp
    assert "below" in str(find_knee(below))


def test_too_short_a_ramp_has_no_curve() -> None:
    """No rows, and a second of rows, tell nothing."""
    short = rows("ramp", seconds=2, offered=lambda _: 50.0)
    assert curve(to_columns([])) is None
    assert curve(to_columns(short)) is None


def test_a_ramp_collapses_when_most_goes_unanswered_for_seconds() -> None:
    """Five bad seconds end a ramp; four do not, nor does a beginning with few rows."""
    flat = rows("ramp", seconds=20, offered=lambda t: 200.0 if t > 10 else 20.0, capacity=40)
    assert collapsed(to_columns(flat), now_s=START_S + 17)
    assert not collapsed(to_columns(flat), now_s=START_S + 14)
    assert not collapsed(to_columns(flat), now_s=START_S + 10)
    assert not collapsed(to_columns([]), now_s=START_S + 10)
