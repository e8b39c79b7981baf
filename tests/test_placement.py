"""Reservations always fit the cluster: no variant waits for ever for its first replica."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.placement import Plan, plan

CPUS = st.integers(1, 512).map(float) | st.floats(1, 512)
VARIANTS = st.integers(1, 8)
THREADS = st.integers(1, 64)
ROUTERS = st.integers(1, 8)


@given(CPUS, VARIANTS, THREADS, ROUTERS)
def test_the_first_replica_of_each_variant_fits(
    cpus: float, variants: int, threads: int, routers: int
) -> None:
    """All routers and one replica of every variant never reserve more than there is."""
    found = plan(cluster_cpus=cpus, variants=variants, threads=threads, routers=routers)
    assert routers * found.router_cpus + variants * found.replica_cpus <= cpus + 1e-9


@given(CPUS, VARIANTS, THREADS, ROUTERS)
def test_one_group_at_its_largest_leaves_room_for_the_others(
    cpus: float, variants: int, threads: int, routers: int
) -> None:
    """A group may grow to its maximum while every other variant keeps a replica."""
    found = plan(cluster_cpus=cpus, variants=variants, threads=threads, routers=routers)
    replicas = found.max_replicas + variants - 1
    assert routers * found.router_cpus + replicas * found.replica_cpus <= cpus + 1e-9


@given(CPUS, VARIANTS, THREADS, ROUTERS)
def test_where_replicas_share_cpus_all_groups_fit_at_their_largest(
    cpus: float, variants: int, threads: int, routers: int
) -> None:
    """A cluster too small for whole CPUs holds all groups at their maximum at once."""
    found = plan(cluster_cpus=cpus, variants=variants, threads=threads, routers=routers)
    if found.router_cpus == 0:
        assert variants * found.max_replicas * found.replica_cpus <= cpus + 1e-9


@given(CPUS, VARIANTS, THREADS, ROUTERS)
def test_a_replica_reserves_something_and_never_more_than_its_threads(
    cpus: float, variants: int, threads: int, routers: int
) -> None:
    """A group has a replica at least, a replica some share of a CPU and at most its threads."""
    found = plan(cluster_cpus=cpus, variants=variants, threads=threads, routers=routers)
    assert found.max_replicas >= 1
    assert 0 < found.replica_cpus <= threads


@given(CPUS, VARIANTS, THREADS, ROUTERS)
def test_the_slots_fit_the_cpus_that_are_reserved(
    cpus: float, variants: int, threads: int, routers: int
) -> None:
    """Replicas in every slot, of whichever variants, never reserve more than there is."""
    found = plan(cluster_cpus=cpus, variants=variants, threads=threads, routers=routers)
    assert found.slots >= variants
    assert routers * found.router_cpus + found.slots * found.replica_cpus <= cpus + 1e-9


@pytest.mark.parametrize(
    ("cpus", "variants", "threads", "routers", "expected"),
    [
        # 1 router + 2 × 3 replicas = 7 CPUs is where whole CPUs begin
        (7, 3, 1, 1, Plan(router_cpus=1, replica_cpus=1, max_replicas=4, slots=6)),
        (6.9, 3, 1, 1, Plan(router_cpus=0, replica_cpus=0.575, max_replicas=4, slots=6)),
        (2, 3, 1, 1, Plan(router_cpus=0, replica_cpus=0.666, max_replicas=1, slots=3)),
        (1, 1, 4, 1, Plan(router_cpus=0, replica_cpus=1, max_replicas=1, slots=1)),
        (64, 3, 4, 2, Plan(router_cpus=1, replica_cpus=4, max_replicas=13, slots=15)),
    ],
)
def test_worked_examples(
    cpus: float, variants: int, threads: int, routers: int, expected: Plan
) -> None:
    """Whole CPUs where two replicas of each variant fit, shares of them below."""
    assert plan(cluster_cpus=cpus, variants=variants, threads=threads, routers=routers) == expected
