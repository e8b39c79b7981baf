"""What opens as a checkpoint and under which name and digest: a folder, a package, a hub's id."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("safetensors.numpy")

from converters import checkpoint as checkpoints
from converters.checkpoint import Checkpoint, open_checkpoint
from serve_app.errors import ConversionError
from tests.converters.checkpoints.folders import refusal, write, write_weights


def test_the_name_is_the_folders_unless_given(folder: Path) -> None:
    """Clients call a model as its folder is called, or as the builder says."""
    assert open_checkpoint(str(folder)).facts.name == "tiny-model"
    assert open_checkpoint(str(folder), name="mine").facts.name == "mine"


def test_an_unreachable_hub_says_how_to_get_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, a hub id is refused with what to do instead."""
    import huggingface_hub

    def offline(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ConversionError, match="copy the model's folder here and give its path"):
        open_checkpoint("org/model")


@pytest.mark.parametrize("trusted", [False, True])
def test_the_hub_gives_code_only_when_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, trusted: bool
) -> None:
    """What is not trusted is not even fetched; the model is called as its id ends."""
    import huggingface_hub

    asked: list[list[str]] = []

    def fetch(source: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert source == "org/hub-model"
        assert "onnx/*" in ignore_patterns
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    opened = open_checkpoint("org/hub-model", trust_remote_code=trusted)
    assert opened.facts.name == "hub-model"
    assert [("*.py" in patterns) for patterns in asked] == [trusted]
    assert "*.bin" not in asked[0]


def test_the_digest_follows_what_decides_the_vectors(folder: Path) -> None:
    """It changes with weights, pooling and limit, and not with a name or a README."""
    before = open_checkpoint(str(folder)).facts.digest
    (folder / "README.md").write_text("words")
    assert open_checkpoint(str(folder), name="other").facts.digest == before
    seen = {before}
    for change in (_other_pooling, _other_limit, _other_weights):
        change(folder)
        seen.add(open_checkpoint(str(folder)).facts.digest)
    assert len(seen) == 4


def _other_pooling(folder: Path) -> None:
    write(folder, "1_Pooling/config.json", {"pooling_mode": "cls"})


def _other_limit(folder: Path) -> None:
    write(folder, "sentence_bert_config.json", {"max_seq_length": 9})


def _other_weights(folder: Path) -> None:
    write_weights(folder, {"weight": np.ones((2, 2), np.float32)})


def test_a_changed_package_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model package whose weights are not the known ones is not converted."""
    monkeypatch.setitem(checkpoints.PACKAGES, "some-package", ("model", "0" * 64))
    monkeypatch.setattr(checkpoints, "_package_folder", lambda _: folder)
    with pytest.raises(ConversionError, match=r"model\.safetensors is not the known file"):
        open_checkpoint("some-package")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """Any other folder is told so."""
    assert "neither modules.json nor config.json" in refusal(tmp_path)


def test_older_folders_keep_the_transformer_in_its_own(folder: Path) -> None:
    """`0_Transformer` holds configuration, weights, tokenizer and limit."""
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).rename(inner / name)
    write(inner, "sentence_bert_config.json", {"max_seq_length": 20})
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = inner.name
    write(folder, "modules.json", modules)
    opened: Checkpoint = open_checkpoint(str(folder))
    assert opened.facts.max_tokens == 20
    assert opened.tokenizer_file == inner / "tokenizer.json"
