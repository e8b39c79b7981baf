"""What is read of a checkpoint's folder, and what is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, normalizers

pytest.importorskip("transformers", reason="transformers is not installed")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

from converters import checkpoint as checkpoints  # noqa: E402 - it needs what is skipped for above
from converters.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from serve_app.errors import ConversionError  # noqa: E402
from serve_app.manifest import Prompts  # noqa: E402

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
OLD_FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
LATER_FLAGS = ("weightedmean_tokens", "lasttoken")
TYPES = "sentence_transformers.models."

Write = Callable[[str, object], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole sentence-transformers folder of a BERT with mean pooling."""
    place = tmp_path / "org" / "tiny-model"
    write(place, "config.json", CONFIG)
    write(place, "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    list_modules(place, "Transformer", "Pooling", "Normalize")
    tokenizer = models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0")  # noqa: S106
    FastTokenizer(tokenizer).save(str(place / "tokenizer.json"))
    write_weights(place, {"weight": np.zeros((2, 2), np.float32)})
    return place


def write(place: Path, name: str, content: object) -> None:
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_text(json.dumps(content))


def write_weights(place: Path, weights: dict[str, np.ndarray]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    safetensors_numpy.save_file(weights, place / "model.safetensors")


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


def test_the_name_is_the_folders_unless_given(folder: Path) -> None:
    """Clients call a model as its folder is called, or as the builder says."""
    assert open_checkpoint(str(folder)).facts.name == "tiny-model"
    assert open_checkpoint(str(folder), name="mine").facts.name == "mine"


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


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        ({}, {"sentence_bert_config.json": {"max_seq_length": 20}}, 20),
        ({}, {"sentence_bert_config.json": {"max_seq_length": 512}}, 32),
        ({}, {"tokenizer_config.json": {"model_max_length": 16}}, 16),
        ({}, {"tokenizer_config.json": {"model_max_length": int(1e30)}}, 32),
        ({}, {"sentence_bert_config.json": {"max_seq_length": None}}, 32),
        ({}, {}, 32),
        ({"model_type": "roberta", "pad_token_id": 1}, {}, 30),
        ({"model_type": "mpnet"}, {}, 30),
        ({"model_type": "xlm-roberta"}, {"tokenizer_config.json": {"model_max_length": 32}}, 30),
    ],
)
def test_the_limit_of_tokens(folder: Path, config: Any, files: Any, expected: int) -> None:
    """Stated by the first file that says so, and never more than the model has positions for."""
    write(folder, "config.json", CONFIG | config)
    for name, content in files.items():
        write(folder, name, content)
    assert open_checkpoint(str(folder)).facts.max_tokens == expected


def test_no_limit_is_refused(folder: Path) -> None:
    """T5 has no positions; where nothing states a limit the error says where to write one."""
    write(folder, "config.json", {"model_type": "t5", "d_model": WIDTH, "vocab_size": VOCABULARY})
    assert "write it to sentence_bert_config.json" in refusal(folder)


def test_padding_is_transformers_own_default(folder: Path) -> None:
    """RoBERTa counts positions by it, and a config.json may leave it out."""
    write(folder, "config.json", CONFIG | {"model_type": "roberta"})
    assert open_checkpoint(str(folder)).tokenizer.pad_id == 1


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    """More tokens than the model has embeddings for."""
    write(folder, "config.json", CONFIG | {"vocab_size": VOCABULARY - 1})
    assert "10 tokens, but the model has 9: the tokenizer does not belong" in refusal(folder)


def test_a_missing_or_broken_tokenizer_is_refused(folder: Path) -> None:
    """The error says how to write a tokenizer.json."""
    (folder / "tokenizer.json").write_text("{")
    assert "cannot be read as a tokenizer" in refusal(folder)
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json is missing. Write it where" in refusal(folder)


def test_lower_casing_must_be_the_tokenizers(folder: Path) -> None:
    """sentence-transformers' do_lower_case is only kept where the tokenizer does it."""
    write(folder, "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True})
    assert "do_lower_case is set" in refusal(folder)
    tokenizer = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(folder / "tokenizer.json"))
    assert open_checkpoint(str(folder)).facts.max_tokens == 20


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


def test_code_of_the_checkpoint_is_not_run_unless_asked(folder: Path) -> None:
    """A model type that transformers does not know, with code beside it, needs the flag."""
    code = "open(__file__ + '.ran', 'w')\n"
    (folder / "configuration_odd.py").write_text(code)
    auto_map = {"auto_map": {"AutoConfig": "configuration_odd.OddConfig"}}
    write(folder, "config.json", CONFIG | auto_map | {"model_type": "odd"})
    assert "add --trust-remote-code" in refusal(folder)
    assert not list(folder.glob("*.ran"))
    write(folder, "config.json", CONFIG | {"model_type": "odd"})
    assert "does not know the model type 'odd'; a newer one may" in refusal(folder)


def test_trusted_code_runs_in_the_build_and_never_in_the_server(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the flag the checkpoint's own classes are used; a torch variant would need them served."""
    pytest.importorskip("torch")
    from transformers import dynamic_module_utils

    from converters.to_fp16 import write_half

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    code = "from transformers import BertConfig\nclass OddConfig(BertConfig):\n    model_type = 'odd'\n"
    (folder / "configuration_odd.py").write_text(code)
    auto_map = {"auto_map": {"AutoConfig": "configuration_odd.OddConfig"}}
    write(folder, "config.json", CONFIG | auto_map | {"model_type": "odd"})
    opened = open_checkpoint(str(folder), trust_remote_code=True)
    assert opened.facts.dims == WIDTH
    with pytest.raises(ConversionError, match="own code in the server; build the variants whose"):
        write_half(opened, tmp_path, batches=[])


def test_a_known_model_type_never_runs_code(folder: Path) -> None:
    """Native code is used where transformers has it, even when the checkpoint brings its own."""
    (folder / "configuration_bert.py").write_text("raise SystemExit\n")
    auto_map = {"auto_map": {"AutoConfig": "configuration_bert.BertConfig"}}
    write(folder, "config.json", CONFIG | auto_map)
    assert open_checkpoint(str(folder)).facts.dims == WIDTH


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
