"""Time and shared cores, against sums done by hand."""

import pytest

from loadtests.simulation import Simulation


def _jobs(cores: float, *jobs: tuple[float, float]) -> list[float]:
    """When jobs end that start at a time and need so much work."""
    simulation, ends = Simulation(cores=cores), [0.0] * len(jobs)

    def end(number: int) -> None:
        ends[number] = simulation.now_s

    def start(number: int) -> None:
        simulation.compute(jobs[number][1], end, number)

    for number, (start_s, _) in enumerate(jobs):
        simulation.at(start_s, start, number)
    simulation.run()
    return ends


@pytest.mark.parametrize(
    ("cores", "jobs", "ends"),
    [
        pytest.param(1, [(0, 3)], [3], id="alone"),
        pytest.param(4, [(0, 3)], [3], id="one thread uses one core"),
        pytest.param(1, [(0, 1), (0, 1)], [2, 2], id="two halves of a core"),
        pytest.param(1, [(0, 1), (0, 2)], [2, 3], id="the longer has the core to itself at last"),
        pytest.param(2, [(0, 2), (0, 2), (0, 2)], [3, 3, 3], id="three on two cores"),
        pytest.param(1, [(0, 2), (1, 2)], [3, 4], id="one comes later"),
        pytest.param(1, [(0, 1), (5, 1)], [1, 6], id="a pause between"),
        pytest.param(1.5, [(0, 3), (0, 3)], [4, 4], id="one and a half cores"),
    ],
)
def test_jobs_share_the_cores(
    cores: float, jobs: list[tuple[float, float]], ends: list[float]
) -> None:
    """Each of n jobs progresses at min(1, cores / n), whatever comes or goes meanwhile."""
    assert _jobs(cores, *jobs) == pytest.approx(ends)


def test_events_of_one_time_happen_in_order_of_entry() -> None:
    """So a run depends on nothing but its seed."""
    simulation, seen = Simulation(cores=1), []
    for number in range(5):
        simulation.at(1.0, seen.append, number)
    simulation.run()
    assert seen == [0, 1, 2, 3, 4]


def test_urgent_jobs_have_a_core_before_all_others() -> None:
    """Beside one urgent job two engines share what is left of two cores."""
    ended: dict[str, float] = {}
    simulation = Simulation(cores=2)

    def end(name: str) -> None:
        ended[name] = simulation.now_s

    simulation.compute(1.0, end, "a")
    simulation.compute(1.0, end, "b")
    simulation.compute_first(0.5, end, "urgent")
    simulation.run()
    assert ended == pytest.approx({"urgent": 0.5, "a": 1.25, "b": 1.25})
