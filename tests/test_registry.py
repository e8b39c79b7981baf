"""The ladder: which built variants are worth deploying, and why the others are not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app import registry
from serve_app.errors import ArtifactError, SettingsError
from serve_app.manifest import MANIFEST_NAME, TOKENIZER_NAME, read_manifest, write_manifest
from serve_app.registry import Ladder, load_ladder

MakeArtifact = Callable[..., Any]


def _names(ladder: Ladder) -> list[str]:
    return [rung.manifest.variant for rung in ladder.rungs]


def _reasons(ladder: Ladder) -> dict[str, str]:
    return {off.variant: off.reason for off in ladder.off}


def _change(folder: Path, **changes: Any) -> None:
    """Rewrite a manifest; `profile` takes the profile's own changes."""
    manifest = read_manifest(folder)
    if "profile" in changes:
        changes["profile"] = replace(manifest.profile, **changes["profile"])
    write_manifest(folder, replace(manifest, **changes))


def test_the_ladder_starts_with_the_highest_fidelity(artifacts: Path) -> None:
    """Variants that trade fidelity for cost all stand on it, the closest first."""
    ladder = load_ladder(artifacts)
    assert _names(ladder) == ["fake-fp32", "fake-bf16", "fake-int8"]
    assert ladder.off == ()
    assert ladder.tokenizer_file == artifacts / "fake-fp32" / TOKENIZER_NAME


@pytest.mark.parametrize(("p1", "cost_ms"), [(0.999, 0.25), (0.9995, 0.21), (0.9994, 0.2)])
def test_a_dominated_variant_stays_off_with_its_numbers(
    artifacts: Path, write_artifact: MakeArtifact, p1: float, cost_ms: float
) -> None:
    """At most the fidelity at no less cost: off, and the reason names the winner and both numbers."""
    write_artifact(artifacts / "fake-fp8", p1=p1, cost_ms=cost_ms)
    ladder = load_ladder(artifacts)
    assert _names(ladder) == ["fake-fp32", "fake-bf16", "fake-int8"]
    assert _reasons(ladder) == {
        "fake-fp8": f"fake-bf16 has fidelity 0.9995 to its {p1:.4f} "
        f"at {0.2 / cost_ms:.2f} of its cost"
    }


def test_of_two_equals_in_fidelity_the_cheaper_stands(
    artifacts: Path, write_artifact: MakeArtifact
) -> None:
    """Equal fidelity at less cost pushes the dearer off."""
    write_artifact(artifacts / "fake-fp8", p1=0.985, cost_ms=0.05)
    ladder = load_ladder(artifacts)
    assert _names(ladder) == ["fake-fp32", "fake-bf16", "fake-fp8"]
    assert list(_reasons(ladder)) == ["fake-int8"]


def test_named_variants_are_deployed_as_named(
    artifacts: Path, write_artifact: MakeArtifact
) -> None:
    """Exactly these, dominated or batch-variant or not, ordered by fidelity; others are not read."""
    write_artifact(artifacts / "fake-fp8", p1=0.9, cost_ms=9, drift=0.01)
    (artifacts / "fake-bf16" / "model.onnx").unlink()
    ladder = load_ladder(artifacts, named=("fake-fp8", "fake-fp32"))
    assert _names(ladder) == ["fake-fp32", "fake-fp8"]
    assert ladder.off == ()


def test_an_unknown_named_variant_is_refused_with_what_is_built(artifacts: Path) -> None:
    """The refusal names the setting, the name, and the names that exist."""
    with pytest.raises(SettingsError) as refused:
        load_ladder(artifacts, named=("fake-int4",))
    assert "variants: 'fake-int4' is not built" in refused.value.message
    assert "fake-bf16, fake-fp32, fake-int8" in refused.value.message


@pytest.mark.parametrize("variant", ["fake-fp32", "fake-int8"])
@pytest.mark.parametrize("part", ["checkpoint", "tokenizer"])
def test_variants_of_different_models_are_refused(artifacts: Path, part: str, variant: str) -> None:
    """Vectors of two checkpoints or two tokenizers cannot be compared: both variants are named."""
    (artifacts / "fake-bf16").rename(artifacts.parent / "moved away")
    manifest = read_manifest(artifacts / variant)
    changes = {"checkpoint": {"digest": "1" * 64}, "tokenizer": {"pad_id": 1}}[part]
    _change(artifacts / variant, **{part: replace(getattr(manifest, part), **changes)})
    with pytest.raises(ArtifactError) as refused:
        load_ladder(artifacts)
    assert "fake-int8" in refused.value.message
    assert "fake-fp32" in refused.value.message
    assert "another checkpoint or tokenizer" in refused.value.message


def test_a_variant_that_depends_on_batch_mates_stays_off(
    artifacts: Path, write_artifact: MakeArtifact
) -> None:
    """However good and cheap: a vector must not depend on what runs beside it."""
    write_artifact(artifacts / "fake-int4", p1=0.9999, cost_ms=0.01, drift=0.02)
    ladder = load_ladder(artifacts)
    assert _names(ladder) == ["fake-fp32", "fake-bf16", "fake-int8"]
    assert _reasons(ladder)["fake-int4"].startswith("vectors move with their batch-mates")
    assert "2.0e-02" in _reasons(ladder)["fake-int4"]


def test_losses_that_probe_texts_cannot_tell_apart_are_one(
    artifacts: Path, write_artifact: MakeArtifact
) -> None:
    """A cheaper variant pushes one off whose fidelity is better by less than p1 is sure of."""
    loss = 1 - read_manifest(artifacts / "fake-int8").fidelity.p1
    write_artifact(artifacts / "fake-int8b", p1=1 - 1.05 * loss, cost_ms=0.01)
    ladder = load_ladder(artifacts)
    assert _names(ladder) == ["fake-fp32", "fake-bf16", "fake-int8b"]
    assert _reasons(ladder)["fake-int8"].startswith("fake-int8b has fidelity")


def test_only_a_rung_that_stays_pushes_another_off(
    artifacts: Path, write_artifact: MakeArtifact
) -> None:
    """Small differences do not add up: of three near ones the best stays with the cheapest."""
    loss = 1 - read_manifest(artifacts / "fake-int8").fidelity.p1
    write_artifact(artifacts / "fake-int8b", p1=1 - 1.08 * loss, cost_ms=0.02)
    write_artifact(artifacts / "fake-int8c", p1=1 - 1.16 * loss, cost_ms=0.01)
    assert _names(load_ladder(artifacts))[2:] == ["fake-int8", "fake-int8c"]


def test_a_variant_that_its_builder_took_off_stays_off(artifacts: Path) -> None:
    """The builder's reason is handed on word for word."""
    _change(artifacts / "fake-int8", off_ladder="fails the recall gate")
    assert _reasons(load_ladder(artifacts)) == {"fake-int8": "fails the recall gate"}


@pytest.fixture
def with_fp16(artifacts: Path, write_artifact: MakeArtifact) -> Path:
    write_artifact(artifacts / "torch-fp16", p1=0.99999, cost_ms=0.01)
    _change(artifacts / "torch-fp16", runtime="torch")
    return artifacts


def test_fp16_stays_off_without_a_gpu(with_fp16: Path) -> None:
    """A CPU runs fp16 slower than fp32, whatever its profile says, and it pushes nobody off."""
    ladder = load_ladder(with_fp16)  # no GPU is the default
    assert _names(ladder) == ["fake-fp32", "fake-bf16", "fake-int8"]
    assert _reasons(ladder) == {"torch-fp16": "needs a GPU, and this cluster has none"}


def test_fp16_runs_on_the_gpu_where_there_is_one(with_fp16: Path) -> None:
    """With a GPU in the cluster it is deployed there, and the others stay on the CPU."""
    _change(with_fp16 / "torch-fp16", profile={"device": "cuda"})
    ladder = load_ladder(with_fp16, gpus=1)
    devices = {rung.manifest.variant: rung.device for rung in ladder.rungs}
    assert devices == {"fake-fp32": "cpu", "torch-fp16": "cuda"}
    assert "torch-fp16 has fidelity 1.0000" in _reasons(ladder)["fake-bf16"]


def test_other_precisions_of_torch_stay_on_the_cpu(artifacts: Path) -> None:
    """A GPU in the cluster is for the precisions that need one."""
    _change(artifacts / "fake-fp32", runtime="torch")
    assert {rung.device for rung in load_ladder(artifacts, gpus=1).rungs} == {"cpu"}


def test_a_profile_of_another_device_is_no_reason_to_stay_off(with_fp16: Path) -> None:
    """What fp16 costs on the CPU it was measured on says nothing of the GPU it will run on."""
    _change(with_fp16 / "torch-fp16", profile={"per_token_ms": 99.0})
    assert "torch-fp16" in _names(load_ladder(with_fp16, gpus=1))


def test_a_profile_of_another_device_pushes_nobody_off(with_fp16: Path) -> None:
    """A cost that was not measured where the variant runs proves nothing against the others."""
    assert "fake-bf16" in _names(load_ladder(with_fp16, gpus=1))


GPU_VARIANTS = {"torch-fp16": "torch", "onnx-fp16": "onnx", "onnx-tensorrt": "tensorrt"}


@pytest.fixture
def for_gpus(tmp_path: Path, write_artifact: MakeArtifact) -> Path:
    """Three ways to run FP16 on a GPU, measured there, beside FP32 on the CPU."""
    folder = tmp_path / "for_gpus"
    write_artifact(folder / "fake-fp32", p1=1.0, cost_ms=0.3)
    for variant, runtime in GPU_VARIANTS.items():
        write_artifact(folder / variant, p1=0.99999, cost_ms=0.01)
        _change(folder / variant, runtime=runtime, precision="fp16", profile={"device": "cuda"})
    return folder


@pytest.mark.parametrize("cheapest", sorted(GPU_VARIANTS))
def test_the_measured_profile_decides_which_runtime_has_the_gpu(
    for_gpus: Path, cheapest: str
) -> None:
    """Of variants that are equally close, the one measured cheapest on the GPU is taken."""
    _change(for_gpus / cheapest, profile={"per_token_ms": 0.005})
    ladder = load_ladder(for_gpus, gpus=1)
    devices = {rung.manifest.variant: rung.device for rung in ladder.rungs}
    assert devices == {"fake-fp32": "cpu", cheapest: "cuda"}
    assert all(cheapest in _reasons(ladder)[v] for v in GPU_VARIANTS if v != cheapest)


def test_an_onnx_variant_runs_where_it_was_measured(for_gpus: Path) -> None:
    """ONNX FP16 measured on the CPU stays there, with a GPU in the cluster too."""
    _change(for_gpus / "onnx-fp16", profile={"device": "cpu"})
    ladder = load_ladder(for_gpus, named=("onnx-fp16", "torch-fp16"), gpus=1)
    assert {r.manifest.variant: r.device for r in ladder.rungs} == {
        "onnx-fp16": "cpu",
        "torch-fp16": "cuda",
    }


def test_what_was_measured_on_a_gpu_stays_off_without_one(for_gpus: Path) -> None:
    """A GPU's costs say nothing of a CPU: the variant is off, and the reason says what to do."""
    ladder = load_ladder(for_gpus)
    assert _names(ladder) == ["fake-fp32"]
    assert "measured on a GPU" in _reasons(ladder)["onnx-fp16"]
    assert "measure it again" in _reasons(ladder)["onnx-fp16"]


@pytest.mark.parametrize("exists", [False, True])
def test_no_artifacts_is_one_line_with_the_command(*, tmp_path: Path, exists: bool) -> None:
    """Without the folder or with an empty one, the message says what to run."""
    folder = tmp_path / "nothing"
    if exists:
        (folder / "interrupted-build").mkdir(parents=True)
    with pytest.raises(ArtifactError) as refused:
        load_ladder(folder)
    assert str(folder) in refused.value.message
    assert "python -m converters build" in refused.value.message


def test_a_ladder_of_nobody_is_refused_with_all_reasons(
    tmp_path: Path, write_artifact: MakeArtifact
) -> None:
    """When every variant is unfit, the message says why of each, and what could be done."""
    write_artifact(tmp_path / "fake-int8", p1=0.9, cost_ms=1, drift=0.5)
    with pytest.raises(ArtifactError, match=r"fake-int8: vectors move.*name one with `variants`"):
        load_ladder(tmp_path)


def test_a_broken_artifact_is_refused_even_if_it_would_stay_off(
    artifacts: Path, write_artifact: MakeArtifact
) -> None:
    """Files are verified before anything is decided from their manifests."""
    write_artifact(artifacts / "fake-fp8", p1=0.9, cost_ms=9)
    (artifacts / "fake-fp8" / "model.onnx").write_bytes(b"tampered")
    with pytest.raises(ArtifactError, match=r"model\.onnx of fake-fp8"):
        load_ladder(artifacts)


def test_a_tokenizer_other_than_the_measured_one_is_refused(artifacts: Path) -> None:
    """The checksum may hold and the digest not: vectors were measured with another tokenizer."""
    for name in ("fake-fp32", "fake-bf16", "fake-int8"):
        tokenizer = replace(read_manifest(artifacts / name).tokenizer, digest="2" * 64)
        _change(artifacts / name, tokenizer=tokenizer)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is not the one fake-\w+ names"):
        load_ladder(artifacts)


def test_a_manifest_without_a_tokenizer_is_refused_by_name(artifacts: Path) -> None:
    """Every artifact carries its tokenizer, and one that lists none is named."""
    path = artifacts / "fake-int8" / MANIFEST_NAME
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["files"][TOKENIZER_NAME]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ArtifactError, match="fake-int8"):
        load_ladder(artifacts)


def test_a_copied_artifact_is_refused_by_name(artifacts: Path) -> None:
    """A folder is named after its variant; a copy beside it would be the same variant twice."""
    (artifacts / "fake-int8").rename(artifacts / "fake-int8-backup")
    with pytest.raises(ArtifactError, match="fake-int8-backup"):
        load_ladder(artifacts)


HERE = "this machine"


@pytest.fixture
def measured_here(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All three profiles are of the machine that plans."""
    monkeypatch.setattr(registry, "hardware_name", lambda device: {"cpu": HERE}[device])
    for name in ("fake-fp32", "fake-bf16", "fake-int8"):
        _change(artifacts / name, profile={"hardware": HERE})
    return artifacts


def test_a_ladder_measured_here_has_no_caveat(measured_here: Path) -> None:
    """The usual case has nothing to say."""
    assert load_ladder(measured_here).caveat is None


def test_a_ladder_measured_elsewhere_says_so_in_one_line(measured_here: Path) -> None:
    """Which variants, on what, where this is, and the exact command that measures again."""
    _change(measured_here / "fake-int8", profile={"hardware": "machine A"})
    _change(measured_here / "fake-bf16", profile={"hardware": "machine B"})
    caveat = load_ladder(measured_here).caveat
    assert caveat is not None
    assert "\n" not in caveat
    assert "fake-bf16 on 'machine B'" in caveat
    assert "fake-int8 on 'machine A'" in caveat
    assert f"here is '{HERE}'" in caveat
    assert "fake-fp32" not in caveat
    assert f"`python -m converters measure --out {measured_here}`" in caveat


def test_a_gpus_profile_is_no_caveat(measured_here: Path) -> None:
    """Who plans may be a node without a GPU, and can say nothing of one."""
    _change(measured_here / "fake-int8", profile={"hardware": "a GPU", "device": "cuda"})
    assert load_ladder(measured_here).caveat is None


def test_a_variant_that_is_off_for_other_reasons_is_no_caveat(measured_here: Path) -> None:
    """Its cost decided nothing; one that was dominated did compete."""
    _change(measured_here / "fake-int8", profile={"hardware": "machine A"}, off_ladder="a gate")
    assert load_ladder(measured_here).caveat is None
    _change(measured_here / "fake-bf16", profile={"hardware": "machine B", "per_token_ms": 9.0})
    assert "fake-bf16" in str(load_ladder(measured_here).caveat)


def test_named_variants_need_no_caveat(measured_here: Path) -> None:
    """Nothing was chosen by cost."""
    _change(measured_here / "fake-int8", profile={"hardware": "machine A"})
    assert load_ladder(measured_here, named=("fake-int8",)).caveat is None
