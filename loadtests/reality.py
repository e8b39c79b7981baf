"""The simulator against a real server: the same load on both, routed and pinned.

Each level is a rate relative to what the best rung alone sustains in the simulator. The load tests put
it on the server, open loop; the simulator gets as many requests of the same texts and budgets. Phases
take turns between routed and pinned, all of them in each round, as the machine is another from minute to minute;
medians of the rounds are compared, and what differs is told in points of attainment.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from converters.provenance import provenance
from loadtests.cluster_model import Cluster
from loadtests.errors import LoadTestError
from loadtests.machine_file import Measured
from loadtests.phase_runner import Driver
from loadtests.phases import Phase
from loadtests.product_policy import BrainPolicy, Switches
from loadtests.progress_line import ProgressLine
from loadtests.records import NOT_ADMITTED, Columns, read_columns
from loadtests.run_folder import REQUESTS, new_folder
from loadtests.served import Server
from loadtests.sim_results import result_of
from loadtests.sim_types import Machine
from loadtests.sim_workload import BUDGETS_MS, requests_at, steady
from loadtests.simulate import measure_capacity

MIX = ",".join(f"{budget_ms:g}ms={share}" for budget_ms, share in BUDGETS_MS.items())
ROUTED = "routed"
WARM_S = 10.0
WARM_PER_S = 10.0
TOOLS = ("ray", "onnxruntime", "openvino", "numpy", "locust")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one side says of one phase."""

    attainment: float  # answered in time / offered, from when each request was due
    fidelity: float  # normalised, over all offered
    rejected: float
    p95_ms: float  # of answers in time


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One phase on both sides: in one round, or as the medians of several."""

    level: float  # of C_best
    per_s: float
    policy: str
    real: Told
    simulated: Told
    rounds: tuple[float, ...] = ()  # the real attainment in each

    @property
    def apart(self) -> float:
        """Points of attainment."""
        return 100 * (self.real.attainment - self.simulated.attainment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to compare."""

    host: str
    out: Path
    levels: tuple[float, ...]
    seconds: float
    rounds: int = 1


def compare(measured: Measured, options: Options, progress: ProgressLine) -> list[Compared]:
    """Run all levels on both sides; writes `reality.json` and `reality.md` into the folder.

    Raises:
        LoadTestError: no server, or one that does not serve the machine's variants.
    """
    machine = measured.machine
    _require_served(options.host, machine)
    folder = new_folder(options.out)
    best_per_s = measure_capacity(measured).best
    driver = Driver(host=options.host, folder=folder, seed=0, options=("--mix", MIX))
    _drive(driver, "warm-up", WARM_PER_S, WARM_S, None)
    found: list[Compared] = []
    for number in range(options.rounds):
        driver = replace(driver, seed=number)
        for level in options.levels:
            for pin in (None, *_ends(machine)):
                per_s = level * best_per_s
                name = f"{pin or ROUTED}-{100 * level:.0f}-{number + 1}"
                progress.now(f"{name}: {per_s:.0f} requests/s for {options.seconds:.0f} s")
                _drive(driver, name, per_s, options.seconds, pin)
                rows = read_columns(folder / REQUESTS)
                real = _told(rows.where(rows.phase == name), machine)
                compared = Compared(
                    level=level,
                    per_s=per_s,
                    policy=pin or ROUTED,
                    real=real,
                    simulated=_simulated(measured, per_s, pin, options.seconds, seed=number),
                    rounds=(real.attainment,),
                )
                progress.done(f"round {number + 1}/{options.rounds}: {_line(compared)}")
                found.append(compared)
        _write(folder, measured, best_per_s, medians(found))
    return medians(found)


def medians(found: Sequence[Compared]) -> list[Compared]:
    """Of all rounds of each phase, in the order of the first."""
    phases: dict[tuple[float, str], list[Compared]] = {}
    for one in found:
        phases.setdefault((one.level, one.policy), []).append(one)
    return [
        replace(
            same[0],
            real=_median([one.real for one in same]),
            simulated=_median([one.simulated for one in same]),
            rounds=tuple(one.real.attainment for one in same),
        )
        for same in phases.values()
    ]


def _median(told: Sequence[Told]) -> Told:
    names = [field.name for field in fields(Told)]
    return Told(**{n: statistics.median(getattr(one, n) for one in told) for n in names})


def _require_served(host: str, machine: Machine) -> None:
    server = Server(host)
    server.check()
    served, asked = {v.variant for v in server.variants()}, {v.variant for v in machine.variants}
    if served != asked:
        raise LoadTestError(
            f"--machine has {', '.join(sorted(asked))}, the server {', '.join(sorted(served))}"
        )


def _ends(machine: Machine) -> Iterator[str]:
    """The best and the cheapest rung."""
    yield max(machine.variants, key=lambda v: v.fidelity).variant
    yield min(machine.variants, key=lambda v: v.profile.cost_ms).variant


def _drive(driver: Driver, name: str, per_s: float, seconds: float, pin: str | None) -> None:
    arrivals = f"constant:rate={per_s:.2f},duration={seconds:g}"
    phase = Phase(name=name, arrivals=arrivals, duration_s=seconds, pin=pin)
    driver.run(phase, watch=lambda _: None, look=lambda _rows, _passed_s: False)


def _told(rows: Columns, machine: Machine) -> Told:
    fidelities = [v.fidelity for v in machine.variants]
    least, span = min(fidelities), max(fidelities) - min(fidelities) or 1.0
    in_time = rows.where(rows.within_budget == 1)
    latencies_ms = sorted(in_time.latency_ms.tolist())
    return Told(
        attainment=len(in_time) / len(rows),
        fidelity=float(((in_time.fidelity - least) / span).sum() / len(rows)),
        rejected=float((rows.status == NOT_ADMITTED).mean()),
        p95_ms=latencies_ms[int(0.95 * len(latencies_ms))] if latencies_ms else 0.0,
    )


def _simulated(
    measured: Measured, per_s: float, pin: str | None, seconds: float, *, seed: int
) -> Told:
    machine = measured.machine
    requests = requests_at(steady(per_s, seconds, seed), measured.pools, seed=seed)

    def policy(machine: Machine, rng: random.Random) -> BrainPolicy:
        return BrainPolicy(machine, rng, switches=Switches(pin=pin))

    cluster = Cluster(machine, policy, seed=seed)
    fate = cluster.run(requests)
    result = result_of(fate, requests, machine, decisions=0, forecasts={})
    return Told(
        attainment=result.attainment,
        fidelity=result.fidelity,
        rejected=result.rejected,
        p95_ms=result.p95_ms,
    )


def _line(c: Compared) -> str:
    return (
        f"{c.level:g} × C_best, {c.policy}: attainment {c.real.attainment:.1%} real, "
        f"{c.simulated.attainment:.1%} simulated; fidelity {c.real.fidelity:.3f}, "
        f"{c.simulated.fidelity:.3f}"
    )


def _write(folder: Path, measured: Measured, best_per_s: float, found: Sequence[Compared]) -> None:
    made = provenance(packages=TOOLS)
    lines = "\n".join(f"- {line}" for line in made.lines)
    content = {
        "provenance": asdict(made),
        "machine": measured.about,
        "best_per_s": best_per_s,
        "compared": [asdict(c) for c in found],
    }
    (folder / "reality.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    head = (
        "| load | policy | requests/s | attainment real % | simulated % | apart | fidelity real "
        "| simulated | rejected real % | simulated % | real in each round % |\n"
        + "|---" * 11
        + "|\n"
    )
    rows = "\n".join(
        f"| {c.level:g} × C_best | {c.policy} | {c.per_s:.0f} | {100 * c.real.attainment:.1f} "
        f"| {100 * c.simulated.attainment:.1f} | {c.apart:+.1f} | {c.real.fidelity:.3f} "
        f"| {c.simulated.fidelity:.3f} | {100 * c.real.rejected:.1f} "
        f"| {100 * c.simulated.rejected:.1f} "
        f"| {', '.join(f'{100 * share:.1f}' for share in c.rounds)} |"
        for c in found
    )
    (folder / "reality.md").write_text(
        f"# The simulator and a real server\n\n{lines}\n\n{head}{rows}\n", encoding="utf-8"
    )
