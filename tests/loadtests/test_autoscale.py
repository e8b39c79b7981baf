"""The autoscaling comparison: what is sent, what it is sent to, and the sums."""

from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests.autoscale import sum_up
from loadtests.autoscale_doubles import make_double
from loadtests.autoscale_load import PHASES, Answer, Sample, schedule
from serve_app.engines.base import open_engine
from serve_app.engines.fake_engine import FakeEngine, Pace
from serve_app.manifest import verify


def test_each_phase_sends_its_own_requests_at_its_rate() -> None:
    """Requests are due within their phase, in order, about as many as asked for; silence sends none."""
    due = list(schedule(PHASES, seed=1))
    assert [at_s for at_s, _ in due] == sorted(at_s for at_s, _ in due)
    start_s = 0.0
    for phase in PHASES:
        times = [at_s for at_s, of in due if of is phase]
        assert all(start_s <= at_s < start_s + phase.seconds for at_s in times)
        assert len(times) == pytest.approx(phase.per_s * phase.seconds, rel=0.2, abs=4)
        start_s += phase.seconds


def test_the_same_seed_sends_the_same() -> None:
    """All policies are played the same demand."""
    assert list(schedule(PHASES, seed=3)) == list(schedule(PHASES, seed=3))
    assert list(schedule(PHASES, seed=3)) != list(schedule(PHASES, seed=4))


def test_a_double_takes_the_time_of_its_original(
    tmp_path: Path, write_artifact: Callable[..., object]
) -> None:
    """A double is a whole artifact, as faithful as its original and so many times slower."""
    write_artifact(tmp_path / "fake-fp32", p1=0.9, cost_ms=0.5)
    double = make_double(tmp_path / "fake-fp32", tmp_path / "doubles", slower=4)
    folder = tmp_path / "doubles" / "fake-fp32"
    assert verify(folder) == double
    assert (double.fidelity.p1, double.profile.per_token_ms) == (0.9, 2.0)
    engine = open_engine(folder, double)
    assert isinstance(engine, FakeEngine)
    assert engine._pace == Pace(base_ms=0.0, per_token_ms=2.0)


def test_sums_of_a_run() -> None:
    """Attainment counts what was late or refused as missed; replica-seconds hold counts until the next."""
    answers = [
        Answer("a", 0.0, 10.0, 200, True),
        Answer("a", 1.0, 900.0, 200, False),
        Answer("b", 2.0, 1.0, 429, False),
        Answer("b", 3.0, 10.0, 200, True),
    ]
    samples = [Sample(0.0, {"x": 1}), Sample(2.0, {"x": 3}), Sample(3.0, {"x": 9})]
    played = sum_up("p", (), answers, samples)
    assert played.attainment == {"all": 0.5, "a": 0.5, "b": 0.5}
    assert played.statuses == {"200": 3, "429": 1}
    assert played.replica_seconds == {"x": 5.0, "all": 5.0}
