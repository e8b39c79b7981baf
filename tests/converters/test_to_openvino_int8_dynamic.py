"""INT8 weights for OpenVINO's dynamic rounding, on a tiny random BERT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: nothing can be converted")
onnx = pytest.importorskip("onnx")

from converters import gptq, to_onnx  # noqa: E402 - they need what is skipped for above
from converters.int8_weights import quantise_weight  # noqa: E402
from converters.onnx_graph import Graph  # noqa: E402
from converters.to_openvino_int8_dynamic import quantize_weights  # noqa: E402
from serve_app.engines.base import DYNAMIC_GROUP, Engine, TokenIds, pad  # noqa: E402
from serve_app.errors import ConversionError  # noqa: E402

pytestmark = pytest.mark.model

LAYERS, LINEARS_PER_LAYER, VOCABULARY, MAX_TOKENS = 2, 6, 200, 64
MakeBert = Callable[..., Any]


def texts(lengths: Sequence[int], *, seed: int) -> list[TokenIds]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, VOCABULARY, n).astype(np.int32) for n in lengths]


BATCHES = [pad(texts([n] * 16, seed=n), 0) for n in (5, 12, 30)]


def exported(make_bert: MakeBert, folder: Path, *, hidden: int) -> Path:
    torch.manual_seed(0)
    model = make_bert(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=0.1,
        attn_implementation="eager",
    )
    file = folder / "model.onnx"
    to_onnx.export(model, file, pooling="mean")
    return file


@pytest.fixture(scope="module")
def fp32_file(make_bert: MakeBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fp32")
    return exported(make_bert, folder, hidden=2 * DYNAMIC_GROUP)


@pytest.fixture(scope="module")
def dynamic_file(fp32_file: Path) -> Path:
    file = fp32_file.with_name("dynamic.onnx")
    assert quantize_weights(fp32_file, file, batches=BATCHES) == LAYERS * LINEARS_PER_LAYER
    return file


def opened(file: Path, *, group: int) -> Engine:
    """OpenVINO is imported late: before Locust, it hangs the collection of all tests."""
    ov = pytest.importorskip("openvino")
    from serve_app.engines.openvino_engine import OpenVinoEngine

    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": group}
    model = ov.Core().compile_model(str(file), "CPU", options)
    return OpenVinoEngine([model], pad_id=0, max_tokens=MAX_TOKENS)


def int8_scales(file: Path) -> list[tuple[int, ...]]:
    """The shapes of the scales of all linear layers' weights."""
    graph = onnx.load(str(file)).graph
    stored = {w.name: w for w in graph.initializer}
    rounded = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert {stored[node.input[0]].data_type for node in rounded} == {onnx.TensorProto.INT8}
    return [tuple(stored[node.input[1]].dims) for node in rounded]


def test_every_linear_has_int8_weights_by_groups(dynamic_file: Path) -> None:
    """Each layer's weight is INT8 with a scale an output and group of inputs, in a valid file."""
    onnx.checker.check_model(str(dynamic_file), full_check=True)
    hidden = 2 * DYNAMIC_GROUP
    attention, up, down = (2, hidden), (2, 2 * hidden), (4, hidden)
    assert sorted(int8_scales(dynamic_file)) == sorted([*[attention] * 4, up, down] * LAYERS)


@pytest.mark.parametrize("group", [0, DYNAMIC_GROUP], ids=["float", "rounded"])
def test_vectors_stay_close_whatever_the_batch_mates(
    fp32_file: Path, dynamic_file: Path, group: int
) -> None:
    """With activations in float or rounded, unseen texts keep their vectors, alone and in company."""
    unseen = texts([3, 9, 20, 40, 60], seed=99)
    expected = opened(fp32_file, group=0).embed(unseen)
    engine = opened(dynamic_file, group=group)
    together = engine.embed(unseen)
    assert 0.999 < (together * expected).sum(axis=1).min() < 1 - 1e-7
    alone = np.concatenate([engine.embed([ids]) for ids in unseen])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_channels_that_make_no_groups_share_a_scale(make_bert: MakeBert, tmp_path: Path) -> None:
    """A hidden size that is no multiple of the group is quantised by output channel, and runs."""
    fp32 = exported(make_bert, tmp_path, hidden=36)
    file = tmp_path / "dynamic.onnx"
    quantize_weights(fp32, file, batches=BATCHES)
    assert set(int8_scales(file)) == {(36,), (72,)}
    unseen = texts([3, 30], seed=99)
    expected = opened(fp32, group=0).embed(unseen)
    found = opened(file, group=DYNAMIC_GROUP).embed(unseen)
    assert (found * expected).sum(axis=1).min() > 0.999


def test_nothing_to_quantise_is_refused(dynamic_file: Path, tmp_path: Path) -> None:
    """A graph without float weights is refused by name, and nothing is written."""
    with pytest.raises(ConversionError, match=r"dynamic\.onnx: no MatMul by a constant weight"):
        quantize_weights(dynamic_file, tmp_path / "again.onnx", batches=BATCHES)
    assert not list(tmp_path.iterdir())


def test_a_group_that_is_small_keeps_its_detail(fp32_file: Path) -> None:
    """Weights of quiet input channels are rounded by steps of their own, with GPTQ or without."""
    for hessian in (None, np.eye(2 * DYNAMIC_GROUP)):
        graph = Graph.load(fp32_file)
        (node, *_) = graph.linear_groups()[0].nodes
        weight = graph.weight(node).copy()
        weight[:DYNAMIC_GROUP] /= 1000
        node.input[1] = graph.add_weight("quiet", weight)
        quantise_weight(graph, node, hessian, group=DYNAMIC_GROUP)
        levels = graph.weights[f"{node.output[0]}_int8"]
        assert np.abs(levels[:DYNAMIC_GROUP]).max() == gptq.LARGEST
        scale = graph.weights[f"{node.output[0]}_int8_scale"]
        back = levels * np.repeat(scale, DYNAMIC_GROUP, axis=0)
        assert (np.abs(back - weight) <= np.repeat(scale, DYNAMIC_GROUP, axis=0) * 0.51).all()
