"""Correcting biases, on two linear layers whose weights were rounded coarsely."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import helper, numpy_helper  # noqa: E402

from converters.bias_correction import correct_biases  # noqa: E402
from converters.calibration import INPUT_NAMES, TokenBatch, activations  # noqa: E402

pytestmark = pytest.mark.model

WIDTH = 16
RNG = np.random.default_rng(0)
WEIGHTS = {
    "table": RNG.standard_normal((50, WIDTH)).astype(np.float32) + 1,  # no mean of zero
    "first_weight": RNG.standard_normal((WIDTH, WIDTH)).astype(np.float32),
    "second_weight": RNG.standard_normal((WIDTH, WIDTH)).astype(np.float32),
    "first_bias": RNG.standard_normal(WIDTH).astype(np.float32),
    "second_bias": RNG.standard_normal(WIDTH).astype(np.float32),
}
IDS = RNG.integers(1, 50, (24, 9))
MASK = np.ones_like(IDS)
MASK[:, 6:] = 0
BATCHES: list[TokenBatch] = [(IDS, MASK)]


def two_layers(file: Path, weights: dict[str, np.ndarray]) -> Path:
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["states"]),
        helper.make_node("MatMul", ["states", "first_weight"], ["first"]),
        helper.make_node("Add", ["first", "first_bias"], ["first_out"]),
        helper.make_node("Relu", ["first_out"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "second_weight"], ["second"]),
        helper.make_node("Add", ["second_bias", "second"], ["second_out"]),
        helper.make_node("ReduceMean", ["second_out"], ["sentence_embedding"], keepdims=0),
        helper.make_node("Shape", ["attention_mask"], ["unused"]),
    ]
    inputs = [helper.make_tensor_value_info(n, 7, ["b", "t"]) for n in INPUT_NAMES]
    output = helper.make_tensor_value_info("sentence_embedding", 1, [])
    stored = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "two", inputs, [output], stored)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(file))
    return file


def coarse(**changed: np.ndarray) -> dict[str, np.ndarray]:
    rounded = {n: np.rint(WEIGHTS[n]).astype(np.float32) for n in WEIGHTS if "weight" in n}
    return WEIGHTS | rounded | changed


def means(file: Path, name: str) -> np.ndarray:
    return np.concatenate([rows for _, rows in activations(file, [name], BATCHES)]).mean(axis=0)


def test_mean_outputs_are_those_of_float_again(tmp_path: Path) -> None:
    """After both layers, in order: the second is corrected for what the corrected first gives it."""
    fp32 = two_layers(tmp_path / "fp32.onnx", WEIGHTS)
    rounded = two_layers(tmp_path / "int8.onnx", coarse())
    out = tmp_path / "out.onnx"
    batches = [(np.repeat(IDS, 3, axis=0), np.repeat(MASK, 3, axis=0))]  # each is every third
    assert correct_biases(fp32, rounded, out, batches=batches) == 2
    for layer in ("first_out", "second_out"):
        assert np.abs(means(rounded, layer) - means(fp32, layer)).max() > 0.05
        np.testing.assert_allclose(means(out, layer), means(fp32, layer), atol=1e-5)


def test_a_rescaled_layer_is_left_alone(tmp_path: Path) -> None:
    """A layer whose bias is not the float one's has outputs of another scale: nothing to compare."""
    fp32 = two_layers(tmp_path / "fp32.onnx", WEIGHTS)
    doubled = coarse(first_bias=2 * WEIGHTS["first_bias"])
    rounded = two_layers(tmp_path / "int8.onnx", doubled)
    out = tmp_path / "out.onnx"
    assert correct_biases(fp32, rounded, out, batches=BATCHES) == 1
    np.testing.assert_allclose(means(out, "first_out"), means(rounded, "first_out"), atol=1e-6)
