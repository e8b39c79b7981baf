"""The ladder: which built variants are worth deploying, and why the others are not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app import registry
from serve_app.engines.cpu import Cpu
from serve_app.manifest import TOKENIZER_NAME, read_manifest
from serve_app.registry import load_ladder
from tests.rungs import change, names_of, reasons_of

MakeArtifact = Callable[..., Any]


def test_the_ladder_starts_with_the_highest_fidelity(artifacts: Path) -> None:
    """Variants that trade fidelity for cost all stand on it, the closest first."""
    ladder = load_ladder(artifacts)
    assert names_of(ladder) == ["fake-fp32", "fake-bf16", "fake-int8"]
    assert ladder.off == ()
    assert ladder.tokenizer_file == artifacts / "fake-fp32" / TOKENIZER_NAME


@pytest.mark.parametrize(("p1", "cost_ms"), [(0.999, 0.25), (0.9995, 0.21), (0.9994, 0.2)])
def test_a_dominated_variant_stays_off_with_its_numbers(
    artifacts: Path, write_artifact: MakeArtifact, p1: float, cost_ms: float
) -> None:
    """At most the fidelity at no less cost: off, and the reason names the winner and both numbers."""
    write_artifact(artifacts / "fake-fp8", p1=p1, cost_ms=cost_ms)
    ladder = load_ladder(artifacts)
    assert names_of(ladder) == ["fake-fp32", "fake-bf16", "fake-int8"]
    assert reasons_of(ladder) == {
        "fake-fp8": f"fake-bf16 has fidelity 0.9995 to its {p1:.4f} "
        f"at {0.2 / cost_ms:.2f} of its cost"
    }


def test_of_two_equals_in_fidelity_the_cheaper_stands(
    artifacts: Path, write_artifact: MakeArtifact
) -> None:
    """Equal fidelity at less cost pushes the dearer off."""
    write_artifact(artifacts / "fake-fp8", p1=0.985, cost_ms=0.05)
    ladder = load_ladder(artifacts)
    assert names_of(ladder) == ["fake-fp32", "fake-bf16", "fake-fp8"]
    assert list(reasons_of(ladder)) == ["fake-int8"]


def test_named_variants_are_deployed_as_named(
    artifacts: Path, write_artifact: MakeArtifact
) -> None:
    """Exactly these, dominated or batch-variant or not, ordered by fidelity; others are not read."""
    write_artifact(artifacts / "fake-fp8", p1=0.9, cost_ms=9, drift=0.01)
    (artifacts / "fake-bf16" / "model.onnx").unlink()
    ladder = load_ladder(artifacts, named=("fake-fp8", "fake-fp32"))
    assert names_of(ladder) == ["fake-fp32", "fake-fp8"]
    assert ladder.off == ()


def test_a_variant_that_depends_on_batch_mates_stays_off(
    artifacts: Path, write_artifact: MakeArtifact
) -> None:
    """However good and cheap: a vector must not depend on what runs beside it."""
    write_artifact(artifacts / "fake-int4", p1=0.9999, cost_ms=0.01, drift=0.02)
    ladder = load_ladder(artifacts)
    assert names_of(ladder) == ["fake-fp32", "fake-bf16", "fake-int8"]
    assert reasons_of(ladder)["fake-int4"].startswith("vectors move with their batch-mates")
    assert "2.0e-02" in reasons_of(ladder)["fake-int4"]


def test_losses_that_probe_texts_cannot_tell_apart_are_one(
    artifacts: Path, write_artifact: MakeArtifact
) -> None:
    """A cheaper variant pushes one off whose fidelity is better by less than p1 is sure of."""
    loss = 1 - read_manifest(artifacts / "fake-int8").fidelity.p1
    write_artifact(artifacts / "fake-int8b", p1=1 - 1.05 * loss, cost_ms=0.01)
    ladder = load_ladder(artifacts)
    assert names_of(ladder) == ["fake-fp32", "fake-bf16", "fake-int8b"]
    assert reasons_of(ladder)["fake-int8"].startswith("fake-int8b has fidelity")


def test_only_a_rung_that_stays_pushes_another_off(
    artifacts: Path, write_artifact: MakeArtifact
) -> None:
    """Small differences do not add up: of three near ones the best stays with the cheapest."""
    loss = 1 - read_manifest(artifacts / "fake-int8").fidelity.p1
    write_artifact(artifacts / "fake-int8b", p1=1 - 1.08 * loss, cost_ms=0.02)
    write_artifact(artifacts / "fake-int8c", p1=1 - 1.16 * loss, cost_ms=0.01)
    assert names_of(load_ladder(artifacts))[2:] == ["fake-int8", "fake-int8c"]


def test_a_variant_that_its_builder_took_off_stays_off(artifacts: Path) -> None:
    """The builder's reason is handed on word for word."""
    change(artifacts / "fake-int8", off_ladder="fails the recall gate")
    assert reasons_of(load_ladder(artifacts)) == {"fake-int8": "fails the recall gate"}


def test_what_this_cpu_cannot_run_stays_off_unless_named(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Artifacts brought from a better machine serve all the same, and the reason says what is lacking."""
    monkeypatch.setattr(registry, "this_cpu", lambda: Cpu("A", 2, frozenset({"sse2", "avx2"})))
    change(artifacts / "fake-bf16", runtime="openvino", precision="bf16")
    ladder = load_ladder(artifacts)
    assert "fake-bf16" not in {r.manifest.variant for r in ladder.rungs}
    (off,) = ladder.off
    assert off.variant == "fake-bf16"
    assert "needs a CPU with AVX512-BF16 or AMX" in off.reason
    (named,) = load_ladder(artifacts, named=("fake-bf16",)).rungs
    assert named.manifest.variant == "fake-bf16"
