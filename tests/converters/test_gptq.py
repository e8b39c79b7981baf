"""GPTQ's rounding by itself, and the guard around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from converters import calibration, gptq, to_int8  # noqa: E402 - they need what is skipped for above
from converters.onnx_graph import Floats  # noqa: E402

pytestmark = pytest.mark.model

OUTPUTS = 24


def correlated(tokens: int = 400, channels: int = 32) -> Floats:
    """Inputs [tokens, channels] of which each is mostly a mix of a few causes, as activations are."""
    rng = np.random.default_rng(0)
    causes = rng.standard_normal((tokens, 4)) @ rng.standard_normal((4, channels))
    return (causes + 0.1 * rng.standard_normal((tokens, channels))).astype(np.float32)


def weight_and_scale(channels: int = 32) -> tuple[Floats, Floats]:
    weight = np.random.default_rng(1).standard_normal((channels, OUTPUTS)).astype(np.float32)
    return weight, np.abs(weight).max(axis=0) / gptq.LARGEST


def nearest(weight: Floats, scale: Floats) -> Floats:
    return np.clip(np.rint(weight / scale), -gptq.LARGEST, gptq.LARGEST)


def test_errors_of_correlated_inputs_cancel() -> None:
    """The product moves by less than half of what rounding to the nearest moves it."""
    inputs, (weight, scale) = correlated(), weight_and_scale()
    hessian = gptq.InputMoments(inputs.T.astype(float) @ inputs, len(inputs)).damped()
    rounded = gptq.round_weight(weight, scale, hessian)
    errors = [
        np.linalg.norm(inputs @ (levels * scale - weight))
        for levels in (rounded.astype(np.float32), nearest(weight, scale))
    ]
    assert errors[0] < errors[1] / 2


def test_independent_inputs_round_to_the_nearest() -> None:
    """Without correlation there is nothing to cancel, whatever the inputs' loudness."""
    weight, scale = weight_and_scale()
    loudness = np.diag(np.linspace(1, 50, len(weight)))
    np.testing.assert_array_equal(
        gptq.round_weight(weight, scale, loudness), nearest(weight, scale)
    )


def test_dead_inputs_are_survived() -> None:
    """Inputs that are always zero, as the moments of too few texts have, give no error and no NaN."""
    weight, scale = weight_and_scale()
    hessian = gptq.InputMoments(np.zeros((len(weight),) * 2), 0).damped()
    np.testing.assert_array_equal(gptq.round_weight(weight, scale, hessian), nearest(weight, scale))


def linear_file(folder: Path) -> Path:
    """One linear layer and a normalisation, with the inputs and output of an export."""
    table = correlated(tokens=50)
    rng = np.random.default_rng(2)
    nodes = [
        onnx.helper.make_node("Gather", ["table", "input_ids"], ["states"]),
        onnx.helper.make_node("MatMul", ["states", "weight"], ["mixed"]),
        onnx.helper.make_node("ReduceMean", ["mixed", "axis"], ["mean"], keepdims=0),
        onnx.helper.make_node("LpNormalization", ["mean"], ["sentence_embedding"], axis=-1),
        onnx.helper.make_node("Shape", ["attention_mask"], ["unused"]),
    ]
    ids = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.INT64, ["b", "t"])
        for n in calibration.INPUT_NAMES
    ]
    output = onnx.helper.make_tensor_value_info("sentence_embedding", 1, ["b", OUTPUTS])
    weights = {
        "table": table,
        "weight": rng.standard_normal((32, OUTPUTS)).astype(np.float32),
        "axis": np.array([1]),
    }
    graph = onnx.helper.make_graph(
        nodes,
        "linear",
        ids,
        [output],
        [onnx.numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    file = folder / "model.onnx"
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), str(file))
    return file


BATCHES = [
    (np.random.default_rng(3).integers(0, 50, (16, 8)), np.ones((16, 8), np.int64)),
]


def int8_weight(file: Path) -> Floats:
    (found,) = (w for w in onnx.load(str(file)).graph.initializer if w.name == "mixed_int8")
    return onnx.numpy_helper.to_array(found)


def test_the_closer_rounding_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPTQ's weights are written where they come closer, and never where they do not."""
    fp32 = linear_file(tmp_path)
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    assert to_int8.quantize_static(fp32, good, batches=BATCHES).gptq
    monkeypatch.setattr(gptq, "round_weight", lambda w, _, __: np.ones(w.shape, np.int8))
    assert not to_int8.quantize_static(fp32, bad, batches=BATCHES).gptq
    assert (int8_weight(bad) != 1).any()
    assert (int8_weight(bad) != int8_weight(good)).any()
    judge = calibration.split(BATCHES)[1]
    assert calibration.distance(fp32, good, judge) < calibration.distance(fp32, bad, judge)
