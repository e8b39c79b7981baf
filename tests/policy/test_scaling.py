"""Replica counts follow demand, within what is allowed and without flapping."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.scaling import SPARE, Bounds, Group, Rules, scale

RULES = Rules(slots=8, quiet_s=30.0)
NAMES = ("best", "middle", "cheap")

ENGINES = st.floats(0, 20)
GROUPS = st.fixed_dictionaries(
    dict.fromkeys(NAMES, st.builds(Group, st.integers(0, 12), st.floats(0, 100)))
)


@st.composite
def bounds(draw: st.DrawFn) -> list[Bounds]:
    found = []
    for place, name in enumerate(NAMES):
        minimum = draw(st.integers(0, 3))
        found.append(
            Bounds(
                variant=name,
                fidelity=1 - place / 10,
                minimum=minimum,
                maximum=minimum + draw(st.integers(0, 6)),
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Case:
    """Anything that may be asked of the policy."""

    demand: dict[str, float]
    groups: dict[str, Group]
    bounds: list[Bounds]
    slots: int
    now_s: float

    def scaled(self, **more: float) -> dict[str, int]:
        """The sizes, with more demand for some."""
        demand = {name: busy + more.get(name, 0.0) for name, busy in self.demand.items()}
        rules = Rules(slots=self.slots, quiet_s=30.0)
        return sizes(scale(demand, self.groups, bounds=self.bounds, rules=rules, now_s=self.now_s))


CASES = st.builds(
    Case,
    st.fixed_dictionaries(dict.fromkeys(NAMES, ENGINES)),
    GROUPS,
    bounds(),
    st.integers(0, 16),
    st.floats(100, 300),
)


def free(*, minimum: int = 0, maximum: int = 8) -> list[Bounds]:
    return [
        Bounds(variant=name, fidelity=1 - place / 10, minimum=minimum, maximum=maximum)
        for place, name in enumerate(NAMES)
    ]


def sizes(groups: dict[str, Group]) -> dict[str, int]:
    return {name: group.replicas for name, group in groups.items()}


@given(CASES)
def test_a_group_stays_within_its_bounds(case: Case) -> None:
    """Whatever is asked and whatever was before, no group is below its minimum or above its maximum."""
    found = case.scaled()
    assert set(found) == set(NAMES)
    for limit in case.bounds:
        assert limit.minimum <= found[limit.variant] <= limit.maximum


@given(CASES)
def test_all_groups_fit_the_cpus(case: Case) -> None:
    """Together the groups never exceed the slots, unless their minima alone do."""
    least = sum(limit.minimum for limit in case.bounds)
    assert sum(case.scaled().values()) <= max(case.slots, least)


@given(CASES, st.sampled_from(NAMES), ENGINES)
def test_more_demand_never_shrinks_a_group(case: Case, name: str, more: float) -> None:
    """At fixed state, a variant that is asked for more gets at least as many replicas."""
    assert case.scaled(**{name: more})[name] >= case.scaled()[name]


@given(
    st.integers(2, 8),
    st.lists(st.tuples(st.floats(0.01, 0.999), st.floats(0, 100)), min_size=1, max_size=20),
)
def test_demand_inside_the_band_moves_nothing(
    replicas: int, steps: list[tuple[float, float]]
) -> None:
    """Between what a smaller group would spare and what this one carries, the size stays for ever."""
    low, high = RULES.utilisation * SPARE * (replicas - 1), RULES.utilisation * replicas
    groups, now_s = {"best": Group(replicas, 0.0)}, 0.0
    for place, pause_s in steps:
        now_s += pause_s
        demand = {"best": low + place * (high - low)}
        groups = scale(demand, groups, bounds=free()[:1], rules=RULES, now_s=now_s)
        assert groups["best"].replicas == replicas


@given(GROUPS, bounds())
def test_silence_brings_every_group_to_its_minimum(
    groups: dict[str, Group], limits: list[Bounds]
) -> None:
    """Without demand each quiet time takes one replica, until the minimum is left."""
    now_s = 100.0
    for _ in range(14):
        groups = scale({}, groups, bounds=limits, rules=RULES, now_s=now_s)
        now_s += RULES.quiet_s
    assert sizes(groups) == {limit.variant: limit.minimum for limit in limits}


def test_up_at_once_and_by_as_many_as_needed() -> None:
    """A cold variant that three engines' work is asked of gets five replicas in one step."""
    found = scale({"best": 3.0}, {}, bounds=free(), rules=RULES, now_s=0.0)
    assert sizes(found) == {"best": 5, "middle": 0, "cheap": 0}


def test_down_one_step_after_each_quiet_time() -> None:
    """A group shrinks by one when the quiet time is over, and not before."""
    groups = scale({"best": 2.0}, {}, bounds=free(), rules=RULES, now_s=0.0)
    at = {}
    for now_s in (29.0, 30.0, 59.0, 60.0, 90.0):
        groups = scale({}, groups, bounds=free(), rules=RULES, now_s=now_s)
        at[now_s] = groups["best"].replicas
    assert at == {29.0: 3, 30.0: 2, 59.0: 2, 60.0: 1, 90.0: 0}


def test_a_short_burst_starts_the_quiet_time_anew() -> None:
    """Demand that comes back before the quiet time is over keeps the group."""
    groups = scale({"best": 2.0}, {}, bounds=free(), rules=RULES, now_s=0.0)
    groups = scale({}, groups, bounds=free(), rules=RULES, now_s=25.0)
    groups = scale({"best": 2.0}, groups, bounds=free(), rules=RULES, now_s=28.0)
    groups = scale({}, groups, bounds=free(), rules=RULES, now_s=50.0)
    assert groups["best"].replicas == 3


def test_one_small_request_wakes_a_cold_variant() -> None:
    """A request of 3 ms in the demand's window of 5 s is enough."""
    found = scale({"best": 0.0006}, {}, bounds=free(), rules=RULES, now_s=0.0)
    assert found["best"].replicas == 1


def test_scarce_cpus_are_shared_by_demand() -> None:
    """Eight slots for twice twelve engines' and once one engine's work: by demand, each wanted one first."""
    demand = {"best": 12.0, "middle": 12.0, "cheap": 1.0}
    found = scale(demand, {}, bounds=free(), rules=RULES, now_s=0.0)
    assert sizes(found) == {"best": 4, "middle": 3, "cheap": 1}


def test_ties_go_to_the_higher_fidelity() -> None:
    """One slot, two variants equally wanted: the closer one gets it."""
    rules = Rules(slots=1, quiet_s=30.0)
    found = scale({"cheap": 1.0, "best": 1.0}, {}, bounds=free(), rules=rules, now_s=0.0)
    assert sizes(found) == {"best": 1, "middle": 0, "cheap": 0}


def test_a_group_that_merely_waits_to_shrink_makes_room() -> None:
    """Replicas kept for the quiet time are given up at once when another variant needs the CPUs."""
    groups = {name: Group(4 if name == "cheap" else 0, 0.0) for name in NAMES}
    rules = Rules(slots=4, quiet_s=30.0)
    found = scale({"best": 2.0}, groups, bounds=free(), rules=rules, now_s=1.0)
    assert sizes(found) == {"best": 3, "middle": 0, "cheap": 1}
