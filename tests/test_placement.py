"""Reservations always fit the cluster: no variant waits for ever for its first replica."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engines.base import Device
from serve_app.errors import SettingsError
from serve_app.manifest import read_manifest
from serve_app.placement import (
    Capacity,
    GpuPlan,
    Plan,
    bounds,
    cores_of,
    gpu_variants,
    plan,
    plan_gpus,
    streams_of,
)
from serve_app.registry import Rung
from serve_app.settings import parse_settings

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


CARDS = st.integers(1, 16)


@given(CARDS, VARIANTS, st.none() | st.integers(1, 16))
def test_replicas_of_all_variants_fit_the_gpus(
    cards: int, variants: int, replicas_per_gpu: int | None
) -> None:
    """Each variant has a replica, one group may be at its largest meanwhile, and no card is overbooked."""
    try:
        found = plan_gpus(gpus=cards, variants=variants, replicas_per_gpu=replicas_per_gpu)
    except SettingsError:
        assert replicas_per_gpu is not None
        assert replicas_per_gpu * cards < variants
        return
    on_a_card = int(1 / found.share + 1e-2)
    assert on_a_card * found.share <= 1
    assert found.max_replicas + variants - 1 <= on_a_card * cards


@pytest.mark.parametrize(
    ("gpus", "variants", "asked", "expected"),
    [
        (1, 1, None, GpuPlan(share=1, max_replicas=1)),
        (1, 3, None, GpuPlan(share=0.3333, max_replicas=1)),
        (4, 3, None, GpuPlan(share=1, max_replicas=1)),
        (1, 1, 2, GpuPlan(share=0.5, max_replicas=2)),
        (2, 2, 3, GpuPlan(share=0.3333, max_replicas=5)),
        (0, 0, None, GpuPlan(share=0, max_replicas=1)),
        (1, 0, 4, GpuPlan(share=0, max_replicas=1)),
    ],
)
def test_worked_examples_of_gpus(
    gpus: float, variants: int, asked: int | None, expected: GpuPlan
) -> None:
    """A card each, a part where variants outnumber cards, or as many parts as asked for."""
    assert plan_gpus(gpus=gpus, variants=variants, replicas_per_gpu=asked) == expected


def test_too_few_replicas_a_gpu_are_refused_with_the_number_that_is_enough() -> None:
    """Serve would wait for ever for the variant that is left without a card."""
    with pytest.raises(SettingsError, match=r"replicas_per_gpu: 1 on 1 GPU.* 2 of 3 .*; 3 do not"):
        plan_gpus(gpus=1, variants=3, replicas_per_gpu=1)


@pytest.mark.parametrize(
    ("settings", "largest"),
    [({}, 1), ({"replicas_per_gpu": 3}, 3), ({"replicas_per_gpu": 3, "max_replicas": 2}, 2)],
)
def test_a_group_on_a_gpu_is_one_replica_unless_asked(
    artifacts: Path, settings: dict[str, int], largest: int
) -> None:
    """A GPU's group is capped at one; with shared GPUs at what they hold; `max_replicas` decides."""
    manifest = read_manifest(artifacts / "fake-fp32")
    rungs = [
        Rung(folder=artifacts, manifest=manifest, device="cuda"),
        Rung(folder=artifacts, manifest=replace(manifest, variant="fake-bf16"), device="cpu"),
    ]
    given_settings = parse_settings(settings)
    cpus = plan(cluster_cpus=16, variants=2, threads=1)
    on_gpu = plan_gpus(
        gpus=1,
        variants=gpu_variants(rungs),
        replicas_per_gpu=given_settings.replicas_per_gpu,
    )
    found = bounds(rungs, cpus, given_settings, on_gpu=on_gpu)
    assert [b.maximum for b in found] == [largest, settings.get("max_replicas", cpus.max_replicas)]


@pytest.mark.parametrize(
    ("settings", "cores", "expected"),
    [
        pytest.param({}, 1, 1, id="one core"),
        pytest.param({}, 2, 2, id="a stream a core"),
        pytest.param({}, 2.9, 2, id="no stream for a part of a core"),
        pytest.param({}, 0.5, 1, id="one at least"),
        pytest.param({}, 64, 4, id="four at most"),
        pytest.param({"threads": 2}, 4, 2, id="each takes its threads"),
        pytest.param({"threads": 8}, 4, 1, id="more threads than cores"),
        pytest.param({"streams": 1}, 64, 1, id="one, asked for"),
        pytest.param({"streams": 9}, 2, 9, id="many, asked for"),
    ],
)
def test_streams_are_as_many_as_cores_hold_or_as_asked_for(
    artifacts: Path, settings: dict[str, int], cores: float, expected: int
) -> None:
    """Of a CPU replica whose engine can."""
    rung = Rung(folder=artifacts, manifest=read_manifest(artifacts / "fake-fp32"), device="cpu")
    assert streams_of(rung, parse_settings(settings), cores=cores) == expected


@pytest.mark.parametrize(
    ("runtime", "device", "expected"),
    [
        ("onnx", "cpu", 3),
        ("openvino", "cpu", 3),
        ("torch", "cpu", 3),
        ("litert", "cpu", 1),
        ("tensorrt", "cuda", 1),
        ("torch", "cuda", 1),
        ("onnx", "cuda", 1),
    ],
)
def test_an_engine_that_takes_one_batch_at_a_time_has_one_stream(
    artifacts: Path, runtime: Any, device: Device, expected: int
) -> None:
    """On a GPU all, and LiteRT anywhere, whatever is asked for."""
    manifest = replace(read_manifest(artifacts / "fake-fp32"), runtime=runtime)
    rung = Rung(folder=artifacts, manifest=manifest, device=device)
    assert streams_of(rung, parse_settings({"streams": 3}), cores=8) == expected


def test_the_cores_of_a_host_are_its_own_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that does not know has one."""
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert cores_of(parse_settings({})) == 1
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert cores_of(parse_settings({})) == 6
    assert cores_of(parse_settings({"cores": 2.5})) == 2.5


@pytest.mark.parametrize(
    ("there", "settings", "expected"),
    [
        pytest.param({"CPU": 8.0, "GPU": 2.0}, {}, (8, 2), id="what is there"),
        pytest.param({}, {}, (1, 0), id="a head that offers nothing"),
        pytest.param({}, {"cluster_cpus": 16}, (16, 0), id="nodes that will come"),
        pytest.param({"CPU": 2.0}, {"cluster_cpus": 16, "cluster_gpus": 1}, (16, 1), id="both"),
        pytest.param({"CPU": 8.0, "GPU": 2.0}, {"cluster_gpus": 0}, (8, 0), id="others' GPUs"),
    ],
)
def test_a_cluster_may_grow_to_what_the_settings_say(
    there: dict[str, float], settings: dict[str, float], expected: tuple[float, float]
) -> None:
    """Else it is what Ray tells when the application is deployed."""
    assert Capacity.of(there, parse_settings(settings)) == expected
