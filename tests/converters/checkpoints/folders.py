"""Folders in sentence-transformers' layout, written part by part; they need what their tests skip for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models

from converters.checkpoint import open_checkpoint
from serve_app.errors import ConversionError

WIDTH, VOCABULARY = 8, 10
CONFIG = {
    "model_type": "bert",
    "hidden_size": WIDTH,
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
}
TYPES = "sentence_transformers.models."


def write_folder(place: Path) -> None:
    """A whole folder of a BERT with mean pooling."""
    write(place, "config.json", CONFIG)
    write(place, "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    list_modules(place, "Transformer", "Pooling", "Normalize")
    tokenizer = models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0")  # noqa: S106
    FastTokenizer(tokenizer).save(str(place / "tokenizer.json"))
    write_weights(place, {"weight": np.zeros((2, 2), np.float32)})


def write(place: Path, name: str, content: object) -> None:
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_text(json.dumps(content))


def write_weights(place: Path, weights: dict[str, np.ndarray]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    save_file(weights, place / "model.safetensors")


def list_modules(place: Path, *kinds: str) -> None:
    paths = ["" if kind == "Transformer" else f"{i}_{kind}" for i, kind in enumerate(kinds)]
    listed = zip(kinds, paths, strict=True)
    write(place, "modules.json", [{"type": TYPES + kind, "path": path} for kind, path in listed])


def write_dense(place: Path, outputs: int, inputs: int, **config: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(outputs)
    weights = {"linear.weight": rng.normal(size=(outputs, inputs)).astype(np.float32)}
    if config.get("bias", True):
        weights["linear.bias"] = rng.normal(size=outputs).astype(np.float32)
    write(place, "config.json", {"in_features": inputs, "out_features": outputs, **config})
    write_weights(place, weights)
    return weights


def refusal(folder: Path, **options: Any) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(ConversionError) as caught:
        open_checkpoint(str(folder), **options)
    assert "\n" not in caught.value.message
    return caught.value.message
