"""Weights that are pickled, corrupt or missing are refused, and the line says where and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("safetensors.numpy")

from converters.checkpoint import open_checkpoint
from serve_app.errors import ConversionError
from tests.converters.checkpoints.folders import WIDTH, list_modules, refusal, write, write_dense


@pytest.mark.parametrize("place", [".", "2_Dense"])
def test_pickles_are_refused(folder: Path, place: str) -> None:
    """Of the transformer or a dense module: `.bin` can run code, and the error says the way out."""
    list_modules(folder, "Transformer", "Pooling", "Dense")
    write_dense(folder / "2_Dense", 6, WIDTH)
    (folder / place / "model.safetensors").rename(folder / place / "pytorch_model.bin")
    message = refusal(folder)
    assert str(folder / place) in message
    assert "which write safetensors" in message


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b"\xff" * len(b), lambda _: b""])
def test_corrupt_safetensors_are_refused(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    """A file cut short, of other bytes, or empty is named."""
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    message = refusal(folder)
    assert f"{file}: corrupt or cut short" in message
    assert message.endswith("fetch it again")


def test_a_missing_part_is_named(folder: Path) -> None:
    """A model in several files is whole only with all that its index names."""
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    write(folder, "model.safetensors.index.json", index)
    assert "model-2.safetensors is missing" in refusal(folder)


def test_missing_weights_are_refused(folder: Path) -> None:
    """Noise would stand in for them: transformers only warns."""
    pytest.importorskip("torch")
    with pytest.raises(ConversionError, match="the weights lack embeddings") as caught:
        open_checkpoint(str(folder)).load_model()
    assert "\n" not in caught.value.message
