"""Schedules of arrivals: their rates, their seeds, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from loadtests.arrivals import arrivals
from loadtests.bursts import CV, bursty
from loadtests.errors import BadFile, BadOption

KINDS = (
    "constant:rate=50,duration=20",
    "ramp:rate=10..90,duration=20",
    "step:rate=10..90,duration=20,steps=4",
    "spike:rate=40..100,duration=20,width=4",
    "sinus:rate=10..90,duration=20,period=10",
    "bursty:rate=50,duration=20",
)


def rate_between(offsets: np.ndarray, start_s: float, end_s: float) -> float:
    return float(((offsets >= start_s) & (offsets < end_s)).sum() / (end_s - start_s))


@pytest.mark.parametrize("given", KINDS)
def test_a_schedule_is_sorted_and_within_its_time(given: str) -> None:
    """Offsets grow from 0 to the duration, about as many as the mean rate says."""
    offsets = arrivals(given, seed=3)
    assert (np.diff(offsets) >= 0).all()
    assert 0 <= offsets[0] <= offsets[-1] <= 20
    assert len(offsets) == pytest.approx(1000, rel=0.2)


@pytest.mark.parametrize("given", KINDS)
def test_a_seed_names_a_schedule(given: str) -> None:
    """The same seed gives the same arrivals, another one others."""
    assert np.array_equal(arrivals(given, 1), arrivals(given, 1))
    assert not np.array_equal(arrivals(given, 1), arrivals(given, 2))


@pytest.mark.parametrize(
    ("given", "quiet", "loud"),
    [
        ("ramp:rate=10..400,duration=20", (0, 4), (16, 20)),
        ("step:rate=10..400,duration=20,steps=5", (0, 4), (16, 20)),
        ("spike:rate=20..400,duration=20,width=4", (0, 8), (8, 12)),
        ("sinus:rate=10..400,duration=20,period=20", (0, 2), (9, 11)),
    ],
)
def test_the_rate_is_where_it_should_be(
    given: str, quiet: tuple[float, float], loud: tuple[float, float]
) -> None:
    """Each shape is quiet and loud at its own times."""
    offsets = arrivals(given)
    assert rate_between(offsets, *loud) > 4 * rate_between(offsets, *quiet)


def test_bursts_have_the_published_statistics() -> None:
    """Over 20 minutes: times between arrivals with a CV of 13, the busiest second at 26 times the mean."""
    for seed in range(3):
        offsets = bursty(50.0, 1200.0, np.random.default_rng(seed))
        gaps = np.diff(offsets)
        assert gaps.std() / gaps.mean() == pytest.approx(CV, rel=0.25)
        in_a_second = np.searchsorted(offsets, offsets + 1) - np.arange(len(offsets))
        assert in_a_second.max() == pytest.approx(26 * 50, rel=0.15)
        assert len(offsets) == pytest.approx(50 * 1200, rel=0.05)


def test_most_requests_of_bursts_meet_no_peak() -> None:
    """A peak is the highest second, not the usual one: few arrivals come at over 5 times the mean."""
    offsets = bursty(50.0, 1200.0, np.random.default_rng(0))
    per_second = np.bincount(offsets.astype(int))
    assert per_second[per_second > 5 * 50].sum() < 0.25 * len(offsets)


@pytest.mark.parametrize("rate", [0.5, 20.0])
def test_a_short_stretch_of_bursts_is_not_empty(rate: float) -> None:
    """Also seconds of bursty traffic, which might be all silence, hold requests."""
    for seed in range(5):
        assert len(bursty(rate, 15.0, np.random.default_rng(seed)))


def test_a_trace_keeps_its_pattern_at_another_rate(tmp_path: Path) -> None:
    """Scaled to a rate, gaps keep their proportions; without a rate the trace is as recorded."""
    file = tmp_path / "trace.csv"
    file.write_text("offset_ms,other\n1000,a\n2000,b\n5000,c\n")
    assert arrivals(f"trace:file={file}").tolist() == [0.0, 1.0, 4.0]
    assert arrivals(f"trace:file={file},rate=2").tolist() == pytest.approx([0.0, 0.25, 1.0])
    assert arrivals(f"trace:file={file},duration=2").tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("gauss:rate=5", "no arrivals are named 'gauss'"),
        ("constant", "rate= is missing"),
        ("constant:rate=0", "rate=0 is not a number above zero"),
        ("constant:rate=nan", "rate=nan is not a number above zero"),
        ("constant:rate=5,duration=-1", "duration=-1 is not a number above zero"),
        ("ramp:rate=5", "needs two rates"),
        ("constant:speed=5", "'speed=5' is not understood"),
        ("constant:rate=1e9", "more than"),
        ("constant:rate=0.0001,duration=1", "no request would be sent"),
    ],
)
def test_what_makes_no_schedule_is_one_line(given: str, told: str) -> None:
    """The line names the option, what was given, and what is wrong with it."""
    with pytest.raises(BadOption) as refused:
        arrivals(given)
    assert str(refused.value).startswith(f"--arrivals={given}")
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read"),
        ("time\n1\n", "no column offset_ms or offset_s"),
        ("offset_s\nsoon\n2\n", "no number"),
        ("offset_s\n1\n", "fewer than two arrivals"),
        ("offset_s\n1\nnan\n", "fewer than two arrivals"),
    ],
)
def test_a_trace_that_is_none_is_one_line(tmp_path: Path, content: str | None, told: str) -> None:
    """A missing or broken trace is named."""
    file = tmp_path / "trace.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(BadFile, match=told) as refused:
        arrivals(f"trace:file={file}")
    assert "trace.csv" in str(refused.value)
