"""The command from a machine's file to tables and figure."""

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtests.__main__ import parser
from loadtests.cluster_model import Cluster, Setup
from loadtests.errors import BadFile, BadOption
from loadtests.in_service import InService
from loadtests.machine_file import (
    MachineFile,
    MeasuredFit,
    MeasuredProfile,
    Pool,
    Rung,
    read_machine,
    write_machine,
)
from loadtests.machine_from import described
from loadtests.overheads import Overheads
from loadtests.product_policy import BrainPolicy, Switches
from loadtests.sim_runs import Load, Run, execute, requests_of
from loadtests.sim_types import Fit
from loadtests.sim_workload import replayed
from loadtests.simulate_command import simulate
from tests.loadtests.sim_machines import LADDER, MACHINE


def _machine_file() -> MachineFile:
    return MachineFile(
        about="By hand.",
        cores=2,
        router_ms=0.2,
        call_ms=0.5,
        replica_call_ms=0.2,
        hop_ms=0.2,
        variants=tuple(
            Rung(
                variant=v.variant,
                fidelity=v.fidelity,
                profile=MeasuredProfile(
                    hardware="by hand",
                    base_ms=v.profile.base_ms,
                    per_token_ms=v.profile.per_token_ms,
                    spread=v.profile.spread,
                    batch_tokens=v.profile.batch_tokens,
                ),
            )
            for v in LADDER
        ),
        token_pools=(
            Pool(name="query", share=60, tokens=(10, 12)),
            Pool(name="long", share=40, tokens=(200,)),
        ),
    )


@pytest.fixture
def machine_json(tmp_path: Path) -> Path:
    file = tmp_path / "machine.json"
    write_machine(file, _machine_file())
    return file


def _args(*words: str) -> argparse.Namespace:
    return parser().parse_args(["simulate", *words])


def test_a_machine_file_comes_back_as_it_was(machine_json: Path) -> None:
    """Ladder, overheads and texts; files of before replicas had streams have one."""
    measured = read_machine(machine_json)
    assert measured.machine.variants == LADDER
    assert (measured.machine.cores, measured.machine.call_ms) == (2, 0.5)
    content = json.loads(machine_json.read_text())
    del content["streams"]
    machine_json.write_text(json.dumps(content))
    assert read_machine(machine_json).machine.streams == 1
    write_machine(machine_json, replace(_machine_file(), streams=3))
    assert read_machine(machine_json).machine.streams == 3
    assert [pool.tokens for pool in measured.pools] == [(10, 12), (200,)]


def _without_cores(content: dict[str, Any]) -> None:
    del content["cores"]


def _with_surplus(content: dict[str, Any]) -> None:
    content["variants"][0]["profile"]["colour"] = "red"


def _with_negative(content: dict[str, Any]) -> None:
    content["variants"][1]["profile"]["per_token_ms"] = -1


def _twice(content: dict[str, Any]) -> None:
    content["variants"] *= 2


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_without_cores, "cores"),
        (_with_surplus, "variants.0.profile.colour"),
        (_with_negative, "variants.1.profile.per_token_ms"),
        (_twice, "listed twice"),
    ],
)
def test_a_broken_machine_file_is_refused_by_field(
    machine_json: Path, damage: Any, named: str
) -> None:
    """One line says which field is wrong."""
    content = json.loads(machine_json.read_text())
    damage(content)
    machine_json.write_text(json.dumps(content))
    with pytest.raises(BadFile, match=named):
        read_machine(machine_json)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_file_that_is_no_machine_is_refused(tmp_path: Path, text: str | None) -> None:
    """Missing, not JSON, or not an object."""
    file = tmp_path / "machine.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BadFile, match=r"machine\.json"):
        read_machine(file)


def test_a_server_describes_its_machine() -> None:
    """Profiles as /v1/variants tells them, token counts by its tokenizer, overheads as measured."""
    told = {
        "variant": "onnx-fp32",
        "fidelity": 1.0,
        "streams": 2,
        "profile": {
            "hardware": "cpu",
            "device": "cpu",
            "threads": 1,
            "base_ms": 1.5,
            "per_token_ms": 0.1,
            "spread": 1.2,
            "batch_tokens": 512,
            "grid": [],
            "cost_ms": 0.103,
        },
    }
    overheads = Overheads(
        idle_cores=0.125,
        router_ms=0.51234,
        call_ms=2.0,
        replica_call_ms=0.4,
        proxy_ms=0.5,
        client_ms=1.5,
        hop_ms=0.3,
        outside_ms=4.0,
        outside_spread=2.0,
        stalls_per_s=2.5,
        stall_ms=5.0,
        router_ms_per_token=0.0012,
        refuse_ms=0.25,
        warm_share=0.5,
        engines=InService(
            served={"onnx-fp32": Fit(base_ms=2.0, per_token_ms=0.11, spread=1.3)},
            together_pace=1.25,
        ),
    )
    found = described([told], lambda text: len(text.split()), cores=2, overheads=overheads)
    assert found.cores == 1.875  # what serves nothing is not there for requests
    assert found.streams == 2
    assert (found.router_ms, found.client_ms, found.hop_ms) == (0.5123, 1.5, 0.3)
    assert (found.outside_ms, found.together_pace, found.stalls_per_s) == (4.0, 1.25, 2.5)
    assert found.variants[0].profile.base_ms == 1.5
    assert found.variants[0].served == MeasuredFit(base_ms=2.0, per_token_ms=0.11, spread=1.3)
    assert [(pool.name, pool.share) for pool in found.token_pools] == [
        ("query", 60),
        ("passage", 30),
        ("long", 10),
    ]
    assert max(found.token_pools[0].tokens) < max(found.token_pools[2].tokens)
    with pytest.raises(KeyError, match="profile"):
        described(
            [{"variant": "a", "fidelity": 1.0, "streams": 2}], len, cores=2, overheads=overheads
        )
    with pytest.raises(ValueError, match="one number of streams"):
        described([told, told | {"streams": 1}], len, cores=2, overheads=overheads)


def test_a_trace_is_replayed_at_another_rate(tmp_path: Path) -> None:
    """Round and round, as long as is asked."""
    trace = tmp_path / "trace.csv"
    trace.write_text("offset_ms\n" + "\n".join(str(100 * n) for n in range(50)))
    offsets = replayed(trace, 40.0, 10.0, seed=3)
    assert len(offsets) == pytest.approx(400, abs=2)
    assert 0 <= offsets[0] < offsets[-1] < 10


def test_the_product_needs_the_spread_of_the_ladder(machine_json: Path) -> None:
    """At a load that the best rung cannot carry, routing attains what that rung alone does not."""
    measured = read_machine(machine_json)
    load = Load(kind="steady", rate=200.0, duration_s=10.0)
    routed = execute(Run(scenario="s", name="routed", load=load, seed=0), measured)
    assert routed.result is not None
    assert routed.attainment > 0.9
    assert sum(share > 0.02 for share in routed.result.variants.values()) >= 2
    assert routed.result.decisions == routed.result.offered


def test_a_profile_told_wrong_is_what_the_brain_believes() -> None:
    """1.6 times too fast, as do replicas that tell their pace; the machine is what it is."""
    switches = Switches(profile_error=1.6)
    policy = BrainPolicy(MACHINE, random.Random(0), switches=switches)  # noqa: S311
    assert policy.brain.load("best").profile.per_token_ms == pytest.approx(0.1 / 1.6)
    setup = Setup(profile_error=1.6)
    cluster = Cluster(MACHINE, lambda _machine, _rng: policy, seed=0, setup=setup)
    assert cluster.replicas["best"][0].promised.per_token_ms == pytest.approx(0.1 / 1.6)
    assert cluster.replicas["best"][0].profile.per_token_ms == pytest.approx(0.1)


def test_a_spike_adds_to_the_load(machine_json: Path) -> None:
    """Between two times only."""
    measured = read_machine(machine_json)
    load = Load(kind="steady", rate=50.0, duration_s=9.0, spike=(3.0, 6.0, 200.0))
    seconds = [int(r.arrived_s // 3) for r in requests_of(load, 0, measured)]
    counts = [seconds.count(third) for third in range(3)]
    assert counts == pytest.approx([150, 750, 150], rel=0.25)


@pytest.mark.parametrize(("told", "expected"), [(None, 0.1), (0.05, 0.05), (9.0, 0.2)])
def test_turning_away_unread_costs_half_where_nobody_measured_it(
    told: float | None, expected: float, tmp_path: Path
) -> None:
    """And never more than reading."""
    file = tmp_path / "machine.json"
    write_machine(file, replace(_machine_file(), refuse_ms=told))
    assert read_machine(file).machine.unread_ms == pytest.approx(expected)


def test_the_command_leaves_tables_numbers_and_a_figure(
    machine_json: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All with where they come from, and the figure small enough to commit."""
    out = tmp_path / "out"
    words = ("--machine", str(machine_json), "--out", str(out), "--scenario", "steady")
    assert simulate(_args(*words, "--seeds", "0,1", "--seconds", "5", "--only-routed")) == 0
    assert "| routed |" in capsys.readouterr().out
    assert "commit" in (out / "tables.md").read_text()
    numbers = json.loads((out / "simulate.json").read_text())
    assert [run["seed"] for run in numbers["runs"]] == [0, 1]
    assert set(numbers["provenance"]) == {"machine", "tools", "commit", "command", "made_at"}
    assert 5_000 < (out / "simulate.png").stat().st_size < 200_000


@pytest.mark.parametrize(
    "words",
    [("--seeds", "0,x"), ("--seeds", "-1"), ("--seconds", "0"), ("--scenario", "trace")],
)
def test_options_that_cannot_be_taken_are_refused(
    machine_json: Path, words: tuple[str, ...]
) -> None:
    """Before anything is simulated."""
    with pytest.raises(BadOption, match=words[0]):
        simulate(_args("--machine", str(machine_json), *words))
