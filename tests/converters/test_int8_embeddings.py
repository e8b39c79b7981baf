"""Embedding tables in INT8: what is rounded, and by how much at most."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import helper, numpy_helper  # noqa: E402

from converters.int8_embeddings import MIN_ROWS, quantise_embeddings  # noqa: E402
from converters.onnx_graph import Graph  # noqa: E402

pytestmark = pytest.mark.model

WIDTH = 8
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, MIN_ROWS, (3, 5))


def model_of(*nodes: onnx.NodeProto, rows: int = MIN_ROWS) -> onnx.ModelProto:
    """A graph that reads a table whose rows differ a thousandfold in size, one of them all zero."""
    table = RNG.standard_normal((rows, WIDTH)).astype(np.float32)
    table *= np.logspace(-2, 1, rows, dtype=np.float32)[:, None]
    table[3] = 0
    inputs = [helper.make_tensor_value_info("ids", 7, ["b", "t"])]
    outputs = [helper.make_tensor_value_info("out", 1, None)]
    stored = [numpy_helper.from_array(table, "table")]
    graph = helper.make_graph(list(nodes), "tables", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


GATHER = helper.make_node("Gather", ["table", "ids"], ["out"])


def run(file: Path, ids: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(str(file)).run(None, {"ids": ids})[0]


def test_each_row_is_rounded_by_its_own_scale(tmp_path: Path) -> None:
    """No value moves by more than half a 127th of its own row's largest; zeros stay zeros."""
    model = model_of(GATHER)
    before = numpy_helper.to_array(model.graph.initializer[0])
    graph = Graph(model)
    assert quantise_embeddings(graph) == 1
    graph.save(tmp_path / "int8.onnx")
    ids = np.arange(MIN_ROWS)[None]
    after = run(tmp_path / "int8.onnx", ids)[0]
    limit = np.abs(before).max(axis=1, keepdims=True) / 254
    assert (np.abs(after - before) <= limit * 1.001).all()
    assert (after != before).any()
    assert not after[3].any()
    assert (tmp_path / "int8.onnx").stat().st_size < before.nbytes / 2


def test_small_tables_and_other_uses_stay_in_float(tmp_path: Path) -> None:
    """Positions are few; a table that is also multiplied by, or gathered by column, is none."""
    small = Graph(model_of(GATHER, rows=MIN_ROWS - 1))
    column = Graph(model_of(helper.make_node("Gather", ["table", "ids"], ["out"], axis=1)))
    tied = Graph(
        model_of(
            helper.make_node("Gather", ["table", "ids"], ["states"]),
            helper.make_node("Transpose", ["table"], ["turned"]),
            helper.make_node("MatMul", ["states", "turned"], ["out"]),
        )
    )
    for graph in (small, column, tied):
        assert quantise_embeddings(graph) == 0
    tied.save(tmp_path / "tied.onnx")
    assert np.isfinite(run(tmp_path / "tied.onnx", IDS)).all()
