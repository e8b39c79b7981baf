"""Dynamic INT8 and ONNX FP16 of a tiny random BERT: what they do, and what dynamic ranges cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: nothing can be converted")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
transformers = pytest.importorskip("transformers")

from converters import to_onnx, to_onnx_fp16  # noqa: E402 - they need what is skipped for above
from converters.to_int8_dynamic import quantize_dynamic  # noqa: E402
from converters.to_onnx_fp16 import to_fp16  # noqa: E402
from serve_app.engines.torch_int8_engine import round_linears  # noqa: E402
from serve_app.errors import ConversionError  # noqa: E402

pytestmark = pytest.mark.model

LAYERS, LINEARS_PER_LAYER, HIDDEN, VOCABULARY = 2, 6, 32, 100
MakeBert = Callable[..., Any]


@pytest.fixture(scope="module")
def tiny_bert(make_bert: MakeBert) -> MakeBert:
    return partial(make_bert, max_position_embeddings=64, attn_implementation="eager")


def batch(rows: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(1, VOCABULARY, (rows, tokens))
    return ids, np.ones_like(ids)


def embed(file: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(to_onnx.INPUT_NAMES, (ids, mask), strict=True)))[0]


@pytest.fixture(scope="module")
def fp32_file(tiny_bert: MakeBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("fp32") / "model.onnx"
    to_onnx.export(tiny_bert(), file, pooling="mean")
    return file


@pytest.fixture(scope="module")
def dynamic_file(fp32_file: Path) -> Path:
    file = fp32_file.with_name("dynamic.onnx")
    assert quantize_dynamic(fp32_file, file) == LAYERS * LINEARS_PER_LAYER
    return file


def test_every_linear_is_integer_per_channel(dynamic_file: Path) -> None:
    """Weights are INT8 with a scale an output channel, and attention's own products stay float."""
    graph = onnx.load(str(dynamic_file)).graph
    weights = {w.name: w for w in graph.initializer}
    products = [n for n in graph.node if n.op_type == "MatMulInteger"]
    assert len(products) == LAYERS * LINEARS_PER_LAYER
    for node in products:
        assert weights[node.input[1]].data_type == onnx.TensorProto.INT8
    scales = [w for name, w in weights.items() if name.endswith("_scale")]
    assert {tuple(w.dims) for w in scales} == {(HIDDEN,), (2 * HIDDEN,)}
    assert sum(n.op_type == "MatMul" for n in graph.node) == LAYERS * len(("scores", "values"))


def test_vectors_stay_close(fp32_file: Path, dynamic_file: Path) -> None:
    """Rounding moves a text alone by little: cosine above 0.99."""
    ids, mask = batch(8, 12)
    cosines = (embed(fp32_file, ids, mask) * embed(dynamic_file, ids, mask)).sum(axis=1)
    assert 0.99 < cosines.min() < 1 - 1e-7


def test_batch_mates_move_a_vector(dynamic_file: Path) -> None:
    """The reason for keeping it off the ladder: the same text differs among other texts."""
    ids, mask = batch(8, 12)
    alone = embed(dynamic_file, ids[:1], mask[:1])
    among = embed(dynamic_file, ids, mask)[:1]
    assert 1 - (alone * among).sum() > 1e-6


def test_nothing_to_quantise_is_an_error(tmp_path: Path) -> None:
    """A graph without linear layers is refused and no file appears."""
    from onnx import helper

    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = helper.make_node("Neg", ["x"], ["y"])
    out = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    file = tmp_path / "neg.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "g", [value], [out])), str(file))
    with pytest.raises(ConversionError, match="nothing to quantise"):
        quantize_dynamic(file, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_fp16_is_half_the_size_and_loads(fp32_file: Path, tmp_path: Path) -> None:
    """Every matrix is FP16, inputs and output keep their types, vectors move by rounding."""
    file = tmp_path / "fp16.onnx"
    to_fp16(fp32_file, file)
    matrices = [w for w in onnx.load(str(file)).graph.initializer if len(w.dims) == 2]
    kinds = {w.data_type for w in matrices if min(w.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}
    ids, mask = batch(4, 10)
    vectors = embed(file, ids, mask)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors, embed(fp32_file, ids, mask), atol=3e-3)


def test_a_cast_that_the_converter_adds_twice_stays_once(
    fp32_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ONNX Runtime 1.31's converter does with some exports: no runtime loads such a graph."""
    convert = to_onnx_fp16.convert_float_to_float16

    def converted(*args: Any, **options: Any) -> Any:
        model = convert(*args, **options)
        at, cast = next((i, n) for i, n in enumerate(model.graph.node) if n.op_type == "Cast")
        model.graph.node.insert(at + 1, cast)
        return model

    monkeypatch.setattr(to_onnx_fp16, "convert_float_to_float16", converted)
    file = tmp_path / "fp16.onnx"
    to_fp16(fp32_file, file)
    ort.InferenceSession(file)


def test_fp16_sums_beyond_its_range(tiny_bert: MakeBert, tmp_path: Path) -> None:
    """Pooling stays in FP32: token states of 30000 sum to what FP16 has no number for."""
    model = tiny_bert()
    with torch.no_grad():
        model.encoder.layer[-1].output.LayerNorm.weight *= 10_000
    fp32, fp16 = tmp_path / "fp32.onnx", tmp_path / "fp16.onnx"
    to_onnx.export(model, fp32, pooling="mean")
    to_fp16(fp32, fp16)
    ids, mask = batch(4, 30)
    np.testing.assert_allclose(embed(fp16, ids, mask), embed(fp32, ids, mask), atol=3e-3)


def test_torch_rounds_each_time_the_same(tiny_bert: MakeBert) -> None:
    """Two openings of the same weights give the same vectors, and every linear layer is INT8."""
    ids, mask = (torch.from_numpy(array) for array in batch(2, 9))
    states = []
    for _ in range(2):
        model = tiny_bert()
        round_linears(model)
        kinds = [type(m).__module__ for m in model.modules() if type(m).__name__ == "Linear"]
        assert kinds
        assert all("quantized" in kind for kind in kinds)
        with torch.inference_mode():
            states.append(model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy())
    np.testing.assert_array_equal(states[0], states[1])
