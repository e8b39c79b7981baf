"""`python -m loadtests simulate`: the shipped policy against others and against the bound, simulated.

Loads are relative to what the machine sustains: C_best and C_cheap are the rates that the rung of the
highest fidelity, and the cheapest, keep up with alone (`sim_capacity.py`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from loadtests.cluster_model import Habits, Setup
from loadtests.machine_file import Measured
from loadtests.product_policy import Switches
from loadtests.progress_line import ProgressLine
from loadtests.sim_capacity import sustained
from loadtests.sim_runs import BOUND, ROUTED, Done, Load, Run, baselines, execute

PROFILE_ERROR = 1.6
STALE_S = 0.2
ROUTERS = 4
SPIKE_S = (60.0, 90.0)
SPIKE_RUN_S = 150.0
QUICK = 0.1  # of the full length
RETRYING = Habits(retries=3, backoff_s=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What the machine sustains, in requests a second."""

    best: float
    cheap: float
    by_variant: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A load relative to the machine's capacity."""

    name: str
    kind: str
    of_best: float = 0.0
    of_cheap: float = 0.0
    seconds: float

    def rate(self, capacity: Capacity) -> float:
        """Mean requests a second."""
        return self.of_best * capacity.best + self.of_cheap * capacity.cheap

    @property
    def title(self) -> str:
        """For people."""
        if self.of_best:
            return f"{self.name}: {self.kind} arrivals, mean {self.of_best:g} × C_best"
        return f"{self.name}: {self.kind} arrivals, mean {self.of_cheap:g} × C_cheap"


SCENARIOS = (
    Scenario(name="steady", kind="steady", of_best=1.3, seconds=300.0),
    Scenario(name="bursty", kind="bursty", of_best=0.4, seconds=1200.0),
    Scenario(name="overload", kind="bursty", of_cheap=1.2, seconds=900.0),
)
TRACE = Scenario(name="trace", kind="recorded", of_best=1.3, seconds=300.0)
METASTABLE = "metastability"

ABLATIONS: dict[str, tuple[Switches, Setup]] = {
    "no correction": (Switches(corrects=False), Setup()),
    "no joiner term": (Switches(sees_joiners=False), Setup()),
    "no shedding": (Switches(sheds=False), Setup()),
    f"state {STALE_S:g} s stale": (Switches(), Setup(stale_s=STALE_S)),
    f"{ROUTERS} routers": (Switches(), Setup(routers=ROUTERS)),
    f"{ROUTERS} routers, state {STALE_S:g} s stale": (
        Switches(),
        Setup(routers=ROUTERS, stale_s=STALE_S),
    ),
    f"profile {PROFILE_ERROR:g}× wrong": (Switches(), Setup(profile_error=PROFILE_ERROR)),
    f"profile {PROFILE_ERROR:g}× wrong, no correction": (
        Switches(corrects=False),
        Setup(profile_error=PROFILE_ERROR),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is to be simulated."""

    scenarios: tuple[str, ...]
    seeds: tuple[int, ...]
    seconds: float | None = None  # of each run, instead of the scenario's own
    quick: bool = False
    only_routed: bool = False
    trace: Path | None = None
    jobs: int = 1

    def lasts(self, scenario: Scenario) -> float:
        """Simulated seconds of each of its runs."""
        if self.seconds is not None:
            return self.seconds
        return scenario.seconds * (QUICK if self.quick else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """All that a report needs."""

    measured: Measured
    capacity: Capacity
    scenarios: tuple[Scenario, ...]
    options: Options
    done: tuple[Done, ...]


def simulate(measured: Measured, options: Options, progress: ProgressLine) -> Simulated:
    """Make all runs."""
    progress.now("measuring what each variant sustains alone")
    capacity = measure_capacity(measured)
    shown = ", ".join(f"{name} {rate:.0f}/s" for name, rate in capacity.by_variant.items())
    progress.done(f"each variant alone sustains: {shown}")
    known = (*SCENARIOS, TRACE)
    scenarios = tuple(s for s in known if s.name in options.scenarios)
    runs = list(plan(scenarios, capacity, options))
    done = []
    for finished in _executed(runs, measured, options.jobs):
        done.append(finished)
        _tell(finished, len(done), len(runs), progress)
    order = {run: turn for turn, run in enumerate(map(_key, runs))}
    done.sort(key=lambda d: order[_key(d.run)])
    return Simulated(
        measured=measured,
        capacity=capacity,
        scenarios=scenarios,
        options=options,
        done=tuple(done),
    )


def measure_capacity(measured: Measured) -> Capacity:
    """Each rung's, alone."""
    machine = measured.machine
    by_variant = {
        v.variant: sustained(machine, v.variant, measured.pools) for v in machine.variants
    }
    best = max(machine.variants, key=lambda v: (v.fidelity, -v.profile.cost_ms))
    cheap = min(machine.variants, key=lambda v: v.profile.cost_ms)
    return Capacity(
        best=by_variant[best.variant], cheap=by_variant[cheap.variant], by_variant=by_variant
    )


def plan(scenarios: Sequence[Scenario], capacity: Capacity, options: Options) -> Iterator[Run]:
    """All runs: of each scenario and seed, the product, the others, the bound and the ablations."""
    for scenario in scenarios:
        load = Load(
            kind=scenario.kind,
            rate=scenario.rate(capacity),
            duration_s=options.lasts(scenario),
            trace=options.trace if scenario is TRACE else None,
        )
        for seed in options.seeds:
            yield from _of_seed(scenario.name, load, seed, options)
    if not options.only_routed:
        yield from _metastable(capacity, options)


def _of_seed(scenario: str, load: Load, seed: int, options: Options) -> Iterator[Run]:
    routed = Run(scenario=scenario, name=ROUTED, load=load, seed=seed)
    yield routed
    if options.only_routed:
        return
    for policy in _others():
        yield replace(routed, name=policy, policy=policy)
    for name, (switches, setup) in ABLATIONS.items():
        yield replace(routed, name=name, switches=switches, setup=setup)


def _others() -> list[str]:
    """Baselines and the bound, where they are there."""
    found: list[str] = []
    if importlib.util.find_spec("loadtests.baselines"):
        found += baselines()
    if importlib.util.find_spec("loadtests.oracle"):
        found.append(BOUND)
    return found


def _metastable(capacity: Capacity, options: Options) -> Iterator[Run]:
    """Half of the capacity, and for 30 s twice of it, by clients that ask again."""
    load = Load(
        kind="steady",
        rate=0.5 * capacity.cheap,
        duration_s=SPIKE_RUN_S,
        spike=(*SPIKE_S, 1.5 * capacity.cheap),
    )
    for seed in options.seeds:
        routed = Run(scenario=METASTABLE, name=ROUTED, load=load, seed=seed)
        routed = replace(routed, setup=Setup(habits=RETRYING))
        yield routed
        yield replace(routed, name="all are read", switches=Switches(gates=False))
        yield replace(
            routed, name=f"{ROUTERS} routers", setup=Setup(routers=ROUTERS, habits=RETRYING)
        )


def _key(run: Run) -> tuple[str, str, int]:
    return run.scenario, run.name, run.seed


def _executed(runs: Sequence[Run], measured: Measured, jobs: int) -> Iterator[Done]:
    if jobs == 1:
        yield from (execute(run, measured) for run in runs)
        return
    with ProcessPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(execute, run, measured) for run in runs]):
            yield future.result()


def _tell(done: Done, count: int, of: int, progress: ProgressLine) -> None:
    run = done.run
    text = (
        f"{count}/{of} {run.scenario}, {run.name}, seed {run.seed}: attainment "
        f"{done.attainment:.2%}, fidelity {done.fidelity:.3f}"
    )
    tell: Callable[[str], None] = progress.done if run.name == ROUTED else progress.now
    tell(text)
