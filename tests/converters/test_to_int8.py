"""The INT8 recipe on a tiny random BERT with the trait that makes real ones hard: loud channels."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: nothing can be converted")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
transformers = pytest.importorskip("transformers")

from converters import smoothing, to_int8, to_onnx  # noqa: E402 - they need what is skipped for above
from converters.calibration import TokenBatch, open_session  # noqa: E402
from serve_app.errors import ConversionError  # noqa: E402
from serve_app.manifest import Pooling  # noqa: E402

pytestmark = pytest.mark.model

LAYERS, LINEARS_PER_LAYER, GROUPS_PER_LAYER = 2, 6, 4
VOCABULARY = 200
PAD_ID = 0


def tiny_bert() -> torch.nn.Module:
    """Random weights, two channels that are 30 times louder, and a padding token louder still."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        initializer_range=0.1,
        attn_implementation="eager",
    )
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("LayerNorm.weight"):
                weight[:2] *= 30
            elif name.endswith("bias"):
                weight.normal_(std=0.1)
        model.embeddings.word_embeddings.weight[PAD_ID] = 50 * torch.randn(64)
    return model


def token_batch(rows: int, tokens: int, *, seed: int = 0, padding: int = 0) -> TokenBatch:
    """Random ids int64 [rows, tokens + padding], with their mask."""
    rng = np.random.default_rng(seed)
    input_ids = rng.integers(1, VOCABULARY, (rows, tokens))
    mask = np.pad(np.ones_like(input_ids), ((0, 0), (0, padding)))
    return np.pad(input_ids, ((0, 0), (0, padding)), constant_values=PAD_ID), mask


CALIBRATION = [token_batch(16, tokens, seed=tokens) for tokens in (5, 12, 30)]


def embed(file: Path, batch: TokenBatch) -> np.ndarray:
    feeds = dict(zip(to_onnx.INPUT_NAMES, batch, strict=True))
    return open_session(str(file)).run(None, feeds)[0].astype(np.float64)


def worst_cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / norms).min())


@pytest.fixture(scope="module")
def fp32_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fp32") / "model.onnx"
    to_onnx.export(tiny_bert(), file, pooling="mean")
    return file


@pytest.fixture(scope="module")
def int8_file(fp32_file: Path) -> Path:
    file = fp32_file.with_name("int8.onnx")
    to_int8.quantize_static(fp32_file, file, batches=CALIBRATION)
    return file


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_export_keeps_vectors(tmp_path: Path, pooling: Pooling) -> None:
    """The FP32 export gives PyTorch's vectors for every pooling, and padding changes none."""
    model = tiny_bert()
    file = tmp_path / "model.onnx"
    to_onnx.export(model, file, pooling=pooling)
    assert to_onnx.parity_error(model, file, pooling=pooling) < 1e-6
    alone, padded = (embed(file, token_batch(3, 9, padding=padding)) for padding in (0, 6))
    np.testing.assert_allclose(padded, alone, atol=1e-5)


def test_every_linear_is_integer(fp32_file: Path, tmp_path: Path) -> None:
    """All linear layers become integer products, and one scale a layer folds into the values."""
    report = to_int8.quantize_static(fp32_file, tmp_path / "int8.onnx", batches=CALIBRATION)
    assert report == to_int8.Int8Report(
        linears=LAYERS * LINEARS_PER_LAYER,
        integer_linears=LAYERS * LINEARS_PER_LAYER,
        calibrated_tensors=LAYERS * GROUPS_PER_LAYER,
        scales_inserted=LAYERS * (GROUPS_PER_LAYER - 1),
        scales_folded=LAYERS,
        gptq=report.gptq,
        biases_corrected=report.biases_corrected,
    )


def test_loud_channels_are_smoothed(fp32_file: Path, int8_file: Path, tmp_path: Path) -> None:
    """Unseen texts keep their vectors, which smoothing owes to its alpha."""
    unseen = token_batch(32, 20, seed=99)
    expected = embed(fp32_file, unseen)
    flat = tmp_path / "flat.onnx"
    to_int8.quantize_static(fp32_file, flat, batches=CALIBRATION, alpha=0.0)
    smoothed_error = 1 - worst_cosine(expected, embed(int8_file, unseen))
    flat_error = 1 - worst_cosine(expected, embed(flat, unseen))
    assert smoothed_error < 2e-3
    assert smoothed_error < flat_error / 3


def test_padding_does_not_calibrate(fp32_file: Path, tmp_path: Path) -> None:
    """Padding, however loud its embedding, leaves the same ranges as no padding."""
    plain = [token_batch(8, 10)]
    padded = [token_batch(8, 10, padding=15)]
    scales = []
    for name, batches in (("plain", plain), ("padded", padded)):
        file = tmp_path / f"{name}.onnx"
        to_int8.quantize_static(fp32_file, file, batches=batches)
        weights = onnx.load(str(file)).graph.initializer
        scales.append([onnx.numpy_helper.to_array(w) for w in weights if "uint8_scale" in w.name])
    assert len(scales[0]) == LAYERS * GROUPS_PER_LAYER
    np.testing.assert_allclose(scales[1], scales[0], rtol=1e-4)


def test_batch_mates_do_not_matter(int8_file: Path) -> None:
    """A text's vector is the same alone and beside a longer text."""
    input_ids, mask = token_batch(2, 30, seed=5)
    mask[0, 7:] = 0
    input_ids[0, 7:] = PAD_ID
    together = embed(int8_file, (input_ids, mask))[:1]
    alone = embed(int8_file, (input_ids[:1, :7], mask[:1, :7]))
    assert worst_cosine(alone, together) > 1 - 1e-5


def test_wrong_fold_is_undone(
    fp32_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where folding would change the vectors, the scale becomes a Mul like the others."""
    fold = smoothing._fold_into_values
    monkeypatch.setattr(
        smoothing, "_fold_into_values", lambda graph, group, scale: fold(graph, group, scale[::-1])
    )
    file = tmp_path / "int8.onnx"
    report = to_int8.quantize_static(fp32_file, file, batches=CALIBRATION)
    assert report.scales_folded == 0
    assert report.scales_inserted == LAYERS * GROUPS_PER_LAYER
    unseen = token_batch(8, 20, seed=99)
    assert worst_cosine(embed(fp32_file, unseen), embed(file, unseen)) > 1 - 2e-3


def test_float_leftovers_are_refused(
    fp32_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the runtime keeps a linear layer in float, there is an error and no file."""
    monkeypatch.setattr(to_int8, "INTEGER_OPS", frozenset())
    with pytest.raises(ConversionError, match="only 0 of 12 linear layers"):
        to_int8.quantize_static(fp32_file, tmp_path / "int8.onnx", batches=CALIBRATION)
    assert not list(tmp_path.iterdir())


def test_no_calibration_is_refused(fp32_file: Path, tmp_path: Path) -> None:
    """Without calibration batches there is an error, not a file with made-up ranges."""
    with pytest.raises(ConversionError, match="only 0 of 8 activations"):
        to_int8.quantize_static(fp32_file, tmp_path / "int8.onnx", batches=[])


def test_nothing_to_quantise_is_refused(int8_file: Path, tmp_path: Path) -> None:
    """A graph without float linear layers, such as an INT8 one, is refused by name."""
    with pytest.raises(ConversionError, match=r"int8\.onnx: no MatMul by a constant weight"):
        to_int8.quantize_static(int8_file, tmp_path / "again.onnx", batches=CALIBRATION)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ([-0.1] * 63 + [6.9], "kept"),  # one text alone makes the mean worse
        ([0.1, 0.2] * 32, "harm"),
        ([-0.1, -0.2] * 32, "kept"),
        ([0.0] * 63 + [np.nan], "harm"),
        ([], "harm"),  # nothing is known
    ],
)
def test_a_correction_goes_only_where_texts_clearly_lose(change: list[float], verdict: str) -> None:
    """The mean of few texts is one text's; a vector that is not finite is harm whatever the rest."""
    before = np.full(len(change), 1.0)
    assert to_int8.is_harm(before, before + np.array(change)) == (verdict == "harm")
