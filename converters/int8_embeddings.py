"""INT8 embedding tables: a row of INT8 with a scale of its own, brought back to float when gathered.

They are half of a small model's bytes and none of its time. A row's rounding touches one token, by at
most 1/254 of its largest value; nothing depends on calibration or batch-mates.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from converters.onnx_graph import MATRIX_NDIM, Floats, Graph
from converters.smoothing import SCALE_FLOOR

MIN_ROWS = 1024  # below, a table is no size worth a rounding: positions, token types


def quantise_embeddings(graph: Graph) -> int:
    """Rewrite every large table that is only gathered by row; returns how many there were."""
    tables = [name for name, weight in graph.weights.items() if _is_table(graph, name, weight)]
    for table in tables:
        _quantise(graph, table)
    return len(tables)


def _is_table(graph: Graph, name: str, weight: Floats) -> bool:
    readers = [node for node in graph.model.graph.node if name in node.input]
    gathered = all(
        node.op_type == "Gather" and node.input[0] == name and _axis(node) == 0 for node in readers
    )
    is_large = weight.ndim == MATRIX_NDIM and weight.shape[0] >= MIN_ROWS
    return bool(readers) and gathered and is_large and weight.dtype == np.float32


def _axis(gather: object) -> int:
    return next((a.i for a in gather.attribute if a.name == "axis"), 0)  # type: ignore[attr-defined]


def _quantise(graph: Graph, table: str) -> None:
    weight = graph.weights[table]
    scale = np.maximum(np.abs(weight).max(axis=1, keepdims=True) / 127, SCALE_FLOOR / 127)
    rows = graph.add_weight(f"{table}_int8", np.rint(weight / scale).astype(np.int8))
    scales = graph.add_weight(f"{table}_scale", scale.astype(np.float32))
    for gather in [node for node in graph.model.graph.node if table in node.input]:
        made, ids = gather.output[0], gather.input[1]
        graph.insert_before(
            gather,
            helper.make_node("Gather", [rows, ids], [f"{made}_int8"], axis=0),
            helper.make_node("Cast", [f"{made}_int8"], [f"{made}_cast"], to=TensorProto.FLOAT),
            helper.make_node("Gather", [scales, ids], [f"{made}_scale"], axis=0),
        )
        gather.op_type = "Mul"
        del gather.attribute[:]
        gather.input[:] = [f"{made}_cast", f"{made}_scale"]
