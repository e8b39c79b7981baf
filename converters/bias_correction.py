"""Bias correction: each linear layer's mean output is brought back to what it is in float.

Rounding moves the mean of a product's outputs a little, the layers after it amplify that, and a bias can
take it back for nothing (Nagel et al. 2019, Data-Free Quantization through Weight Equalization and Bias
Correction, section 4.2). Layers are corrected in the order they run, each seeing the corrected ones
before it. On all-MiniLM-L6-v2 the probe texts' mean 1 - cosine falls by 6 %; p1 stays what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from converters.calibration import TokenBatch, activations
from converters.onnx_graph import Floats, Graph

EVERY = 3  # calibration text: means need fewer than ranges, and each layer costs a pass
Means = dict[str, npt.NDArray[np.float64]]


def correct_biases(
    fp32_file: Path, int8_file: Path, out_file: Path, *, batches: Sequence[TokenBatch]
) -> int:
    """Write `int8_file` with corrected biases; returns of how many linear layers.

    Layers without a bias stay as they are, and so do those whose outputs were rescaled (smoothing
    folds a scale into the values' bias), as their means are not those of `fp32_file`.
    """
    some = [(ids[::EVERY], mask[::EVERY]) for ids, mask in batches]
    full, graph = Graph.load(fp32_file), Graph.load(int8_file)
    groups = [[n.output[0] for n in group.nodes] for group in full.linear_groups()]
    wanted = _means(fp32_file, [name for group in groups for name in group], some)
    graph.save(out_file)
    corrected = 0
    for group in groups:
        adds = {name: add for name in group if (add := _same_bias(full, graph, name)) is not None}
        if not adds:
            continue
        found = _means(out_file, list(adds), some)
        for name, add in adds.items():
            _shift(graph, add, wanted[name] - found[name], product=name)
        graph.save(out_file)
        corrected += len(adds)
    return corrected


def _means(file: Path, names: Sequence[str], batches: Sequence[TokenBatch]) -> Means:
    """Of each tensor over all tokens, by channel."""
    sums: Means = {}
    tokens = dict.fromkeys(names, 0)
    for name, rows in activations(file, names, batches):
        sums[name] = sums.get(name, 0.0) + rows.sum(axis=0, dtype=np.float64)
        tokens[name] += len(rows)
    return {name: total / tokens[name] for name, total in sums.items()}


def _same_bias(full: Graph, graph: Graph, product: str) -> onnx.NodeProto | None:
    """The Add of a linear layer's bias in `graph`, if the bias is what it is in float."""
    before, now = _add(full, product), _add(graph, product)
    if before is None or now is None:
        return None
    same = np.array_equal(_bias(full, before, product), _bias(graph, now, product))
    return now if same else None


def _add(graph: Graph, product: str) -> onnx.NodeProto | None:
    for node in graph.model.graph.node:
        if node.op_type == "Add" and product in node.input:
            (other,) = (name for name in node.input if name != product)
            return node if other in graph.weights else None
    return None


def _bias(graph: Graph, add: onnx.NodeProto, product: str) -> Floats:
    (name,) = (name for name in add.input if name != product)
    bias: Floats = graph.weights[name]
    return bias


def _shift(graph: Graph, add: onnx.NodeProto, by: npt.NDArray[np.float64], *, product: str) -> None:
    """A bias of its own: layers may share one."""
    bias = _bias(graph, add, product) + by.astype(np.float32)
    add.input[:] = [product, graph.add_weight(f"{product}_bias", bias)]
