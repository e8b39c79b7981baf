"""Poolings, dense modules, prompts and lengths: what is read of them, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("safetensors.numpy")

from converters.checkpoint import open_checkpoint
from serve_app.manifest import Prompts
from tests.converters.checkpoints.folders import WIDTH, list_modules, refusal, write, write_dense

OLD_FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
LATER_FLAGS = ("weightedmean_tokens", "lasttoken")


@pytest.mark.parametrize("on", [*OLD_FLAGS, *LATER_FLAGS])
def test_poolings_as_flags(folder: Path, on: str) -> None:
    """The older layout has one flag a mode."""
    flags = {f"pooling_mode_{flag}": flag == on for flag in (*OLD_FLAGS, *LATER_FLAGS)}
    write(folder, "1_Pooling/config.json", flags)
    expected = on.removesuffix("_tokens").removesuffix("_token")
    assert open_checkpoint(str(folder)).facts.pooling == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("mean", "mean"),
        ("cls", "cls"),
        ("lasttoken", "lasttoken"),
        ("mean_sqrt_len_tokens", "mean_sqrt_len"),
        (["weightedmean"], "weightedmean"),
    ],
)
def test_poolings_by_name(folder: Path, mode: object, expected: str) -> None:
    """The newer layout names the mode."""
    write(folder, "1_Pooling/config.json", {"pooling_mode": mode})
    assert open_checkpoint(str(folder)).facts.pooling == expected


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "pooling cls + mean"),
        ({"pooling_mode": ["max", "mean"]}, "pooling max + mean is not one of mean, cls"),
        ({"pooling_mode": "attention"}, "pooling attention is not one of"),
        ({}, "pooling none is not one of"),
        ({"pooling_mode": "mean", "include_prompt": False}, "include_prompt is false"),
    ],
)
def test_unsupported_poolings_are_named(folder: Path, config: object, problem: str) -> None:
    """Combinations and unknown modes are refused, not guessed."""
    write(folder, "1_Pooling/config.json", config)
    assert problem in refusal(folder)


def test_a_plain_folder_needs_a_pooling(folder: Path) -> None:
    """Without modules.json the pooling has to be stated, and the error says how."""
    (folder / "modules.json").unlink()
    assert "no modules.json" in (message := refusal(folder))
    assert "--pooling mean|cls|lasttoken" in message
    assert open_checkpoint(str(folder), pooling="cls").facts.pooling == "cls"
    assert "'sum' is not one of" in refusal(folder, pooling="sum")


def test_a_pooling_that_contradicts_the_folder_is_refused(folder: Path) -> None:
    """What the model was trained with is not overridden by accident."""
    assert "states pooling mean, not cls" in refusal(folder, pooling="cls")
    assert open_checkpoint(str(folder), pooling="mean").facts.pooling == "mean"


def test_dense_modules_become_a_head(folder: Path) -> None:
    """Dense layers, their activations and a unit length between them, in order and with weights."""
    torch = pytest.importorskip("torch")
    list_modules(folder, "Transformer", "Pooling", "Dense", "Normalize", "Dropout", "Dense")
    identity = "torch.nn.modules.linear.Identity"
    first = write_dense(folder / "2_Dense", 6, WIDTH)
    second = write_dense(folder / "5_Dense", 4, 6, bias=False, activation_function=identity)
    opened = open_checkpoint(str(folder))
    assert opened.facts.head == ("dense", "tanh", "normalize", "dense")
    assert opened.facts.dims == 4
    vectors = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)
    middle = np.tanh(vectors @ first["linear.weight"].T + first["linear.bias"])
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    found = opened.load_head()(torch.from_numpy(vectors)).detach().numpy()
    np.testing.assert_allclose(found, middle @ second["linear.weight"].T, atol=1e-6)


def test_a_torch_artifact_carries_the_head(folder: Path, tmp_path: Path) -> None:
    """What is written beside the model gives the same head without the checkpoint."""
    torch = pytest.importorskip("torch")
    from serve_app.engines.torch_engine import load_head
    from serve_app.errors import ArtifactError

    list_modules(folder, "Transformer", "Pooling", "Dense")
    write_dense(folder / "2_Dense", 6, WIDTH)
    opened = open_checkpoint(str(folder))
    with pytest.raises(ArtifactError, match=r"head\.safetensors is missing; rebuild"):
        load_head(tmp_path, opened.facts)
    opened.write_head(tmp_path)
    vectors = torch.randn(2, WIDTH)
    torch.testing.assert_close(
        load_head(tmp_path, opened.facts)(vectors), opened.load_head()(vectors)
    )


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"activation_function": "mine.Swish"}, "activation_function mine.Swish is not one of"),
        ({"activation_function": "torch.nn.Softplus"}, "Softplus is not one of Identity, Tanh"),
        ({"use_residual": True}, "use_residual is not supported"),
        ({"module_input_name": "token_embeddings"}, "module_input_name 'token_embeddings'"),
    ],
)
def test_unsupported_dense_modules_are_named(folder: Path, config: Any, problem: str) -> None:
    """What would change vectors and is not understood is refused."""
    list_modules(folder, "Transformer", "Pooling", "Dense")
    write_dense(folder / "2_Dense", 6, WIDTH, **config)
    assert problem in refusal(folder)


def test_other_modules_are_named(folder: Path) -> None:
    """A module of another kind, or in another place, is refused by its name."""
    list_modules(folder, "Transformer", "Pooling", "LayerNorm")
    assert "module LayerNorm is not supported" in refusal(folder)
    list_modules(folder, "StaticEmbedding", "Normalize")
    assert "modules.json lists StaticEmbedding, Normalize" in refusal(folder)


def test_prompts_and_matryoshka_dims_are_facts(folder: Path) -> None:
    """Prompts go by what sentence-transformers' encode_query and encode_document would take."""
    stated = {
        "prompts": {"query": "q: ", "passage": "p: ", "other": "o: "},
        "default_prompt_name": "other",
        "matryoshka_dims": [4, 2, 8, 999],
    }
    write(folder, "config_sentence_transformers.json", stated)
    facts = open_checkpoint(str(folder)).facts
    assert facts.prompts == Prompts(query="q: ", document="p: ", default="o: ")
    assert facts.matryoshka_dims == (2, 4, 8)


def test_without_settings_there_are_no_prompts(folder: Path) -> None:
    """A folder that states nothing has empty prompts and no lengths."""
    facts = open_checkpoint(str(folder)).facts
    assert facts.prompts == Prompts(query="", document="", default="")
    assert facts.matryoshka_dims == ()
    assert facts.head == ()


def test_a_stated_truncation_cuts_the_vectors(folder: Path) -> None:
    """`truncate_dim` decides the dims, as in sentence-transformers."""
    write(folder, "config_sentence_transformers.json", {"truncate_dim": 3})
    facts = open_checkpoint(str(folder)).facts
    assert (facts.dims, facts.head) == (3, ("truncate",))
