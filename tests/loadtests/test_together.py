"""Engines that slow each other: in the simulation, in its bound, and in a machine's file."""

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtests import simulate as runs
from loadtests.__main__ import parser
from loadtests.cluster_model import Cluster
from loadtests.errors import BadOption
from loadtests.machine_file import Measured, read_machine
from loadtests.oracle import bound
from loadtests.product_policy import BrainPolicy
from loadtests.sim_types import Fit, Machine
from loadtests.simulate_command import simulate
from loadtests.simulation import Simulation
from tests.loadtests.sim_machines import facts, request

RESULTS = Path(__file__).parents[2] / "loadtests" / "results"


def _ends(
    simulation: Simulation, start: Callable[[Callable[[str], None]], None]
) -> dict[str, float]:
    ends: dict[str, float] = {}

    def end(name: str) -> None:
        ends[name] = simulation.now_s

    start(end)
    simulation.run()
    return ends


def test_engines_slow_each_other_only_while_both_are_busy() -> None:
    """The pace falls when the second begins, and rises when it ends."""
    simulation = Simulation(cores=4, together_pace=1.5)

    def start(end: Callable[[str], None]) -> None:
        def second(_: None) -> None:
            simulation.compute(1.0, end, "second", engine=True)

        simulation.compute(3.0, end, "first", engine=True)
        simulation.at(1.0, second, None)

    assert _ends(simulation, start) == pytest.approx({"second": 2.5, "first": 3.5})


def test_a_call_beside_an_engine_slows_nobody() -> None:
    """What is no engine's work streams no weights."""
    simulation = Simulation(cores=4, together_pace=1.5)

    def start(end: Callable[[str], None]) -> None:
        simulation.compute(1.0, end, "engine", engine=True)
        simulation.compute(1.0, end, "call")

    assert _ends(simulation, start) == pytest.approx({"engine": 1.0, "call": 1.0})


def test_engines_that_share_a_core_are_slower_still() -> None:
    """Half a core each, at the pace of two."""
    simulation = Simulation(cores=1, together_pace=1.25)

    def start(end: Callable[[str], None]) -> None:
        for name in ("a", "b"):
            simulation.compute(1.0, end, name, engine=True)

    assert _ends(simulation, start) == pytest.approx({"a": 2.5, "b": 2.5})


def test_batches_take_what_was_measured_of_them_in_a_server() -> None:
    """Instead of the profile at one pace for all; the profile stays what replicas' paces are told by."""
    only = facts()
    machine = Machine(
        cores=8, variants=(only,), served={"only": Fit(base_ms=4.0, per_token_ms=0.2)}
    )
    fate = Cluster(machine, BrainPolicy, seed=0).run([request(0, 0.0, tokens=50)])
    assert fate.latencies_ms == pytest.approx([4.0 + 0.2 * 50])
    assert replace(machine, served={}, engine_pace=2.0).batches(only).ms(50.0) == 2 * 7.0


def test_a_long_text_takes_the_router_longer() -> None:
    """By its tokens, when it is read."""
    machine = Machine(cores=8, variants=(facts(),), router_ms=1.0, router_ms_per_token=0.01)
    fate = Cluster(machine, BrainPolicy, seed=0).run([request(0, 0.0, tokens=100)])
    assert fate.latencies_ms == pytest.approx([1.0 + 0.01 * 100 + 2.0 + 0.1 * 100])


def test_a_router_that_is_busy_works_faster() -> None:
    """The second of two requests is read at the warm share; one that comes in quiet is not."""
    machine = Machine(cores=8, variants=(facts(),), router_ms=2.0, warm_share=0.25)
    texts = [request(number, at_s, tokens=50) for number, at_s in enumerate((0.0, 0.0, 1.0))]
    first, second, quiet = Cluster(machine, BrainPolicy, seed=0).run(texts).latencies_ms
    both_read_ms = 2.0 + 0.25 * 2.0  # the first one's call leaves once the second is read
    assert (first, second) == pytest.approx((both_read_ms + 7.0, both_read_ms + 2 * 7.0))
    assert quiet == pytest.approx(2.0 + 7.0)
    assert [machine.warmth(idle_s) for idle_s in (0.0, 0.0015, 9.0)] == [0.25, 0.625, 1.0]


@pytest.mark.parametrize(
    ("pace", "served"),
    [
        pytest.param(1.25, 80, id="two that slow each other do less than twice as much"),
        pytest.param(5.0, 50, id="where both do less than one alone, it works alone"),
    ],
)
def test_the_bound_lets_engines_work_together_or_alone(pace: float, served: int) -> None:
    """Whichever does more: 200 requests of 20 ms each, in a second."""
    ladder = (
        facts("one", base_ms=0.0, per_token_ms=0.1),
        facts("two", base_ms=0.0, per_token_ms=0.1),
    )
    machine = Machine(cores=2, variants=ladder, together_pace=pace)
    requests = [request(number, 0.0, tokens=200) for number in range(200)]
    found = bound(requests, machine, slot_ms=10.0)
    assert served / 200 <= found.attainment <= 1.05 * served / 200


def test_an_older_file_reads_as_before() -> None:
    """Client and proxy as one number, one pace for all engines, none that slow each other."""
    file = RESULTS / "2026-11-25-intel-xeon-2-cores" / "machine.json"
    told, machine = json.loads(file.read_text()), read_machine(file).machine
    assert machine.proxy_ms + machine.client_ms == told["around_ms"]
    assert machine.with_clients_elsewhere() == machine  # nobody knows the clients' part
    assert machine.together_pace == 1.0
    best = machine.variants[0]
    expected_ms = told["engine_pace"] * best.profile.fitted_ms(100)
    assert machine.batches(best).ms(100.0) == pytest.approx(expected_ms)


def _written(folder: Path, **more: Any) -> Path:
    told = json.loads((RESULTS / "2026-11-26-intel-xeon-2-cores" / "machine.json").read_text())
    file = folder / "machine.json"
    file.write_text(json.dumps({**told, **more}))
    return file


def _simulated(
    words: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> Machine:
    """The machine that the command simulates."""
    file = _written(folder, **more)
    seen: list[Machine] = []

    class Seen(Exception):
        """Enough."""

    def simulated(measured: Measured, *_: object) -> None:
        seen.append(measured.machine)
        raise Seen

    monkeypatch.setattr(runs, "simulate", simulated)
    args: argparse.Namespace = parser().parse_args(["simulate", "--machine", str(file), *words])
    with pytest.raises(Seen):
        simulate(args)
    return seen[0]


@pytest.mark.parametrize(("words", "client_ms"), [((), 0.0), (("--clients-here",), 2.0)])
def test_simulated_clients_are_elsewhere_unless_said(
    words: tuple[str, ...], client_ms: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their CPU is not the server's; the proxy's is."""
    told = {"around_ms": None, "client_ms": 2.0, "proxy_ms": 0.5}
    machine = _simulated(words, tmp_path, monkeypatch, **told)
    assert (machine.client_ms, machine.proxy_ms) == (client_ms, 0.5)


@pytest.mark.parametrize(("words", "streams"), [((), 2), (("--streams", "1"), 1)])
def test_simulated_replicas_have_the_servers_streams_unless_said(
    words: tuple[str, ...], streams: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the same machine can be simulated with and without batches side by side."""
    assert _simulated(words, tmp_path, monkeypatch, streams=2).streams == streams


def test_no_streams_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the flag and the value."""
    with pytest.raises(BadOption, match=r"--streams.*0"):
        _simulated(("--streams", "0"), tmp_path, monkeypatch)


def test_clients_on_the_same_cores_leave_less_to_the_engines() -> None:
    """With them, as on one host in a load test, an engine that shares one core takes longer."""
    machine = Machine(cores=1, variants=(facts(),), client_ms=3.0, proxy_ms=1.0)

    def latency_ms(machine: Machine) -> float:
        return Cluster(machine, _policy, seed=0).run([request(0, 0.0)]).latencies_ms[0]

    assert latency_ms(machine) > latency_ms(machine.with_clients_elsewhere()) > 7.0


def _policy(machine: Machine, rng: random.Random) -> BrainPolicy:
    return BrainPolicy(machine, rng)
