"""Artifacts that are no ladder: absent, unfit, broken or of different models, each refused by name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import ArtifactError, SettingsError
from serve_app.manifest import MANIFEST_NAME, TOKENIZER_NAME, read_manifest
from serve_app.registry import load_ladder
from tests.rungs import change

MakeArtifact = Callable[..., Any]


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
    change(artifacts / variant, **{part: replace(getattr(manifest, part), **changes)})
    with pytest.raises(ArtifactError) as refused:
        load_ladder(artifacts)
    assert "fake-int8" in refused.value.message
    assert "fake-fp32" in refused.value.message
    assert "another checkpoint or tokenizer" in refused.value.message


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
        change(artifacts / name, tokenizer=tokenizer)
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
