"""Integer products of ONNX Runtime's, at the values where 16 bits would overflow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from serve_app.engines import onnx_engine  # noqa: E402 - they need the above
from serve_app.engines.base import open_engine  # noqa: E402
from serve_app.engines.cpu import Cpu  # noqa: E402
from tests.engines.conftest import MakeVariant  # noqa: E402

DIMS = 32
LOUDEST = {"activation": 255, "weight": 127}


def write_product(file: Path) -> None:
    """A graph that multiplies a text's tokens, each 255 in all channels, by weights that are all 127."""
    helper, of_array = onnx.helper, onnx.numpy_helper.from_array
    constants = {
        "table": np.full((9, DIMS), LOUDEST["activation"], np.float32),
        "one": np.float32(1),
        "low": np.uint8(0),
        "weight": np.full((DIMS, DIMS), LOUDEST["weight"], np.int8),
        "ones": np.ones(DIMS, np.float32),
        "zeros": np.zeros(DIMS, np.int8),
        "axis": np.array([1]),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("QuantizeLinear", ["tokens", "one", "low"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "one", "low"], ["read"]),
        helper.make_node("DequantizeLinear", ["weight", "ones", "zeros"], ["by"], axis=1),
        helper.make_node("MatMul", ["read", "by"], ["product"]),
        helper.make_node("ReduceMean", ["product", "axis"], ["vector"], keepdims=0),
    ]
    shapes = {"input_ids": ["batch", "tokens"], "attention_mask": ["batch", "tokens"]}
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info(n, onnx.TensorProto.INT64, s) for n, s in shapes.items()],
        [helper.make_tensor_value_info("vector", onnx.TensorProto.FLOAT, ["batch", DIMS])],
        [of_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=opsets), str(file))


def test_integer_products_are_exact(tmp_path: Path, make_variant: MakeVariant) -> None:
    """Also on a CPU without VNNI, where ONNX Runtime's default kernels overflow."""
    write_product(tmp_path / "model.onnx")
    engine = open_engine(tmp_path, make_variant("int8", runtime="onnx"))
    (vector,) = engine.embed([np.arange(5, dtype=np.int32)])
    assert set(vector) == {DIMS * LOUDEST["activation"] * LOUDEST["weight"]}


@pytest.mark.parametrize(("flags", "told"), [((), True), (("avx512_vnni",), False)])
def test_kernels_of_vnni_are_not_given_up(
    monkeypatch: pytest.MonkeyPatch, *, flags: tuple[str, ...], told: bool
) -> None:
    """They are exact and fast; any other processor, known or not, is told to be exact."""
    monkeypatch.setattr(onnx_engine, "this_cpu", lambda: Cpu("A", 2, frozenset({"sse2", *flags})))
    options = onnx_engine.session_options(1)
    if told:
        assert options.get_session_config_entry(onnx_engine.EXACT) == "1"
    else:
        with pytest.raises(RuntimeError, match=onnx_engine.EXACT):  # not there
            options.get_session_config_entry(onnx_engine.EXACT)
