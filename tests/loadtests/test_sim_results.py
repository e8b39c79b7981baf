"""The numbers of a run: shares, worth of fidelity, worst window, intervals, recovery, what a rung sustains."""

from dataclasses import replace

import pytest

from loadtests.cluster_model import Fate, Outcome
from loadtests.sim_capacity import sustained
from loadtests.sim_results import Mean, result_of, worst_window, worths
from loadtests.sim_runs import Load, around_spike, recovered_s
from loadtests.sim_types import Machine
from loadtests.sim_workload import TokenPool
from tests.loadtests.sim_machines import MACHINE, facts, request

QUERIES = (TokenPool(name="query", share=1, tokens=(50,)),)


def test_one_rung_sustains_what_its_batches_hold() -> None:
    """Full batches of two texts of 50 tokens: 12 ms each, about 165 texts a second."""
    machine = Machine(cores=8, variants=(facts(),))
    assert sustained(machine, "only", QUERIES, run_s=10.0) == pytest.approx(2 / 0.012, rel=0.06)


def test_results_count_first_attempts() -> None:
    """A refusal is a miss, fidelity counts those in time, by where they lie on the ladder."""
    requests = [request(n, float(n), budget_ms=50.0 if n < 2 else 100.0) for n in range(4)]
    outcomes = [Outcome.ON_TIME, Outcome.ON_TIME, Outcome.REJECTED, Outcome.LATE]
    fate = Fate(
        bytearray(outcomes),
        ["best", "middle", "", "cheap"],
        [10.0, 20.0, 0.0, 0.0],
        [(5.0, Outcome.ON_TIME)],
    )
    forecasts = {("best", 0, True): 19, ("best", 0, False): 1}
    result = result_of(fate, requests, MACHINE, decisions=4, forecasts=forecasts)
    assert (result.attainment, result.rejected, result.late) == (0.5, 0.25, 0.25)
    assert result.fidelity == pytest.approx((1.0 + 0.9) / 4)
    assert result.by_budget == {"50": 1.0, "100": 0.0}
    assert (result.retries, result.retries_on_time) == (1, 1)
    assert [(c.variant, c.within, c.of) for c in result.calibration] == [("best", 19, 20)]


def test_worth_goes_from_the_lowest_to_the_highest_deployed() -> None:
    """0 and 1 at the ends; all 1 where there is one fidelity only."""
    assert worths(MACHINE) == {"best": 1.0, "middle": pytest.approx(0.9), "cheap": 0.0}
    assert worths(Machine(cores=1, variants=(facts(),))) == {"only": 1.0}


def test_the_worst_window_is_found_wherever_it_begins() -> None:
    """Ten seconds in which half of the requests missed, between good ones."""
    requests = [request(n, n / 10) for n in range(600)]
    missed = range(235, 335, 2)
    outcomes = bytearray(Outcome.LATE if n in missed else Outcome.ON_TIME for n in range(600))
    assert worst_window(requests, outcomes) == pytest.approx(0.5, abs=0.06)
    assert worst_window(requests[:20], outcomes[:20]) is None


def test_confidence_intervals_are_students() -> None:
    """Three seeds: 4.30 standard errors each way."""
    found = Mean.of([1.0, 2.0, 3.0])
    assert (found.value, found.half) == (2.0, pytest.approx(4.30 / 3**0.5))
    assert Mean.of([1.0]).half is None


def test_recovery_is_told_in_seconds_after_the_spike() -> None:
    """Until five good seconds on end follow; a good one between bad ones is no recovery."""
    load = Load(kind="steady", rate=10.0, duration_s=20.0, spike=(1.0, 3.0, 100.0))
    requests = [request(n, n / 10) for n in range(200)]
    bad_seconds = (3, 5)
    outcomes = bytearray(
        Outcome.LATE if n // 10 in bad_seconds else Outcome.ON_TIME for n in range(200)
    )
    assert recovered_s(load, requests, outcomes) == 3
    assert recovered_s(load, requests, bytearray([Outcome.LATE] * 200)) is None
    shares = around_spike(load, requests, outcomes)
    assert shares == (1.0, 1.0, 0.0, 1.0, 0.0, *[1.0] * 7)
    assert around_spike(replace(load, spike=None), requests, outcomes) == ()
