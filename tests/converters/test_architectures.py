"""Every architecture on a tiny random model, from a saved folder to each kind of variant."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models

torch = pytest.importorskip("torch", reason="torch is not installed: nothing can be converted")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from converters import checkpoint, to_fp16, to_int8, to_onnx, to_openvino_int8_dynamic  # noqa: E402 - they need the above
from converters.calibration import open_session  # noqa: E402
from converters.fidelity import reference_engine  # noqa: E402
from converters.recipes import RECIPES, Notes  # noqa: E402
from serve_app.engines.base import Engine, TokenIds, Vectors, pad  # noqa: E402
from serve_app.engines.onnx_engine import OnnxEngine  # noqa: E402
from serve_app.engines.torch_engine import open_engine as open_torch_engine  # noqa: E402
from serve_app.manifest import Pooling  # noqa: E402

pytestmark = pytest.mark.model

VOCABULARY, MAX_TOKENS, PAD_ID = 64, 48, 1
LENGTHS = (1, 3, 13, 40)  # beyond the sliding windows, and other than the traced ones
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
    "pad_token_id": PAD_ID,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
ENCODER = SIZES | {"max_position_embeddings": MAX_TOKENS}
OFFSET = SIZES | {"max_position_embeddings": MAX_TOKENS + PAD_ID + 1}
DECODER = ENCODER | {"num_key_value_heads": 2, "head_dim": 8}
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
DEBERTA = {
    "relative_attention": True,
    "position_buckets": 8,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": PAD_ID,
}
# The class of the configuration, its values, the pooling that such models are trained with.
Architecture = tuple[str, dict[str, Any], Pooling]
ARCHITECTURES: dict[str, Architecture] = {
    "bert": ("BertConfig", ENCODER, "mean"),
    "distilbert": ("DistilBertConfig", ENCODER | {"dim": 32, "hidden_dim": 64}, "mean"),
    "roberta": ("RobertaConfig", OFFSET, "cls"),
    "xlm-roberta": ("XLMRobertaConfig", OFFSET, "mean"),
    "mpnet": ("MPNetConfig", OFFSET, "mean"),
    "deberta-v2": ("DebertaV2Config", ENCODER | DEBERTA, "mean"),
    "modernbert": (
        "ModernBertConfig",
        ENCODER | {"local_attention": 8, "global_attn_every_n_layers": 2},
        "cls",
    ),
    "nomic": ("NomicBertConfig", ENCODER, "mean"),
    "gte": ("GteConfig", ENCODER, "cls"),
    "t5": ("T5Config", T5, "mean"),
    "t5-gated": ("T5Config", T5 | {"feed_forward_proj": "gated-gelu"}, "mean"),
    "qwen3": ("Qwen3Config", DECODER, "lasttoken"),
    "gemma3": ("Gemma3TextConfig", DECODER | SLIDING, "lasttoken"),
}
ABSOLUTE_POSITIONS = ("bert", "distilbert", "roberta", "xlm-roberta", "mpnet")


def write_folder(folder: Path, architecture: Architecture) -> None:
    """A sentence-transformers folder of a random model, with a word-level tokenizer."""
    config_class, values, pooling = architecture
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**values)
    loader = transformers.AutoModel
    if config.is_encoder_decoder:
        loader = transformers.AutoModelForTextEncoding
    loader.from_config(config).save_pretrained(folder)
    words = models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0")  # noqa: S106
    FastTokenizer(words).save(str(folder / "tokenizer.json"))
    modules = [{"type": f"st.{kind}", "path": kind} for kind in ("Transformer", "Pooling")]
    modules[0]["path"] = ""
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "Pooling").mkdir()
    (folder / "Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
    if "max_position_embeddings" not in values:
        limit = {"max_seq_length": MAX_TOKENS}
        (folder / "sentence_bert_config.json").write_text(json.dumps(limit))


@dataclass(frozen=True)
class Built:
    """A checkpoint with its FP32 export."""

    checkpoint: checkpoint.Checkpoint
    reference: Engine
    onnx_file: Path


def add_dense(folder: Path, *, outputs: int) -> None:
    """Unit length and a dense module, after the pooling."""
    modules = json.loads((folder / "modules.json").read_text())
    modules += [{"type": f"st.{kind}", "path": kind} for kind in ("Normalize", "Dense")]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "Dense").mkdir()
    (folder / "Dense" / "config.json").write_text(json.dumps({"out_features": outputs}))
    weights = {"linear.weight": torch.randn(outputs, 32), "linear.bias": torch.randn(outputs)}
    save_file(weights, folder / "Dense" / "model.safetensors")


def build(folder: Path, architecture: Architecture) -> Built:
    write_folder(folder, architecture)
    return export(folder)


def export(folder: Path) -> Built:
    opened = checkpoint.read_checkpoint(folder, name="tiny")
    model, pooling = opened.load_model(), opened.facts.pooling
    file = folder / "model.onnx"
    to_onnx.export(model, file, pooling=pooling, head=opened.load_head())
    return Built(opened, reference_engine(opened), file)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp(request.param), ARCHITECTURES[request.param])


def random_texts(lengths: Sequence[int], *, seed: int = 0) -> list[TokenIds]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, VOCABULARY, n).astype(np.int32) for n in lengths]


def onnx_embed(file: Path) -> Callable[[Sequence[TokenIds]], Vectors]:
    return OnnxEngine(open_session(str(file)), pad_id=PAD_ID).embed


def half_engine(built: Built, folder: Path) -> Engine:
    """The engine of the torch-fp16 artifact, written to `folder`."""
    batches = [pad(random_texts([12] * 4), PAD_ID)]
    notes = Notes(kept_fp32=to_fp16.write_half(built.checkpoint, folder, batches=batches))
    variant = RECIPES["torch-fp16"].variant("torch-fp16", built.checkpoint, notes=notes)
    return open_torch_engine(folder, variant, 1, "cpu")


def drift(embed: Callable[[Sequence[TokenIds]], Vectors]) -> float:
    """Largest 1 - cosine between texts in one padded batch and alone."""
    texts = random_texts(LENGTHS, seed=7)
    alone = np.concatenate([embed([ids]) for ids in texts]).astype(np.float64)
    return float((1 - (embed(texts) * alone).sum(1)).max())


def test_the_export_gives_pytorchs_vectors(built: Built) -> None:
    """A padded batch of lengths that were not traced agrees to 1e-5 a component."""
    texts = random_texts(LENGTHS)
    found, expected = onnx_embed(built.onnx_file)(texts), built.reference.embed(texts)
    assert np.abs(found - expected).max() <= 1e-5
    assert np.abs(found[2] - found[3]).max() > 1e-2  # and says something about the text


def test_padding_does_not_matter(built: Built) -> None:
    """In PyTorch and in the graph a text has the vector that it has alone."""
    assert drift(built.reference.embed) <= 1e-6
    assert drift(onnx_embed(built.onnx_file)) <= 1e-6


def test_half_the_weights_load_in_the_torch_engine(built: Built, tmp_path: Path) -> None:
    """The FP16 folder needs nothing of the checkpoint's and gives nearly its vectors."""
    texts = random_texts(LENGTHS)
    found = half_engine(built, tmp_path).embed(texts)
    assert (found * built.reference.embed(texts)).sum(1).min() > 0.999


def test_static_int8_builds_and_is_batch_invariant(built: Built, tmp_path: Path) -> None:
    """Every linear layer becomes an integer product, near FP32, whatever the batch-mates."""
    texts = [random_texts([n] * 8, seed=n) for n in (5, 12, 30)]
    file = tmp_path / "int8.onnx"
    report = to_int8.quantize_static(
        built.onnx_file, file, batches=[pad(group, PAD_ID) for group in texts]
    )
    assert report.integer_linears == report.linears >= 8
    assert drift(onnx_embed(file)) <= 1e-4
    unseen = random_texts(LENGTHS, seed=99)
    assert (onnx_embed(file)(unseen) * built.reference.embed(unseen)).sum(1).mean() > 0.95


def test_dynamic_int8_for_openvino_builds(built: Built, tmp_path: Path) -> None:
    """Every linear layer's weights are rounded, near FP32, whatever the batch-mates."""
    texts = [random_texts([n] * 8, seed=n) for n in (5, 12, 30)]
    file = tmp_path / "dynamic.onnx"
    batches = [pad(group, PAD_ID) for group in texts]
    assert to_openvino_int8_dynamic.quantize_weights(built.onnx_file, file, batches=batches) >= 8
    assert drift(onnx_embed(file)) <= 1e-4
    unseen = random_texts(LENGTHS, seed=99)
    assert (onnx_embed(file)(unseen) * built.reference.embed(unseen)).sum(1).mean() > 0.95


def test_the_longest_text_is_as_long_as_stated(built: Built) -> None:
    """max_tokens fit; one more does not, where positions have a table."""
    facts = built.checkpoint.facts
    assert facts.max_tokens == MAX_TOKENS
    assert np.isfinite(built.reference.embed(random_texts([MAX_TOKENS]))).all()
    if built.checkpoint.folder.name.rstrip("0123456789") in ABSOLUTE_POSITIONS:
        with pytest.raises((IndexError, RuntimeError)):
            built.reference.embed(random_texts([MAX_TOKENS + 1]))


def test_the_head_is_in_every_variant(tmp_path: Path) -> None:
    """Dense modules decide the vectors of the graph, the FP16 folder and the reference alike."""
    folder, half = tmp_path / "dense", tmp_path / "half"
    half.mkdir()
    built = build(folder, ARCHITECTURES["bert"])
    add_dense(folder, outputs=5)
    dense = export(folder)
    assert dense.checkpoint.facts.dims == 5
    texts = random_texts(LENGTHS)
    weights = load_file(folder / "Dense" / "model.safetensors")
    before = torch.from_numpy(built.reference.embed(texts))  # already of unit length
    after = torch.tanh(before @ weights["linear.weight"].T + weights["linear.bias"])
    expected = torch.nn.functional.normalize(after).numpy()
    assert np.abs(dense.reference.embed(texts) - expected).max() <= 1e-5
    assert np.abs(onnx_embed(dense.onnx_file)(texts) - expected).max() <= 1e-5
    assert (half_engine(dense, half).embed(texts) * expected).sum(1).min() > 0.999


def test_dynamo_takes_over_where_torchscript_fails(tmp_path: Path) -> None:
    """EmbeddingGemma's two-way windows cannot be traced, and dynamo exports them right."""
    pytest.importorskip("onnxscript", reason="the dynamo exporter needs onnxscript")
    values = DECODER | {"use_bidirectional_attention": True, "sliding_window": 8}
    gemma = build(
        tmp_path / "gemma",
        ("Gemma3TextConfig", values | {"num_hidden_layers": 1, "layer_types": None}, "mean"),
    )
    texts = random_texts(LENGTHS)
    expected = gemma.reference.embed(texts)
    assert np.abs(onnx_embed(gemma.onnx_file)(texts) - expected).max() <= 1e-5
