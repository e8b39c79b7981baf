"""INT8 weights of a linear layer, brought back to float by a DequantizeLinear before its product."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from converters import gptq
from converters.onnx_graph import Graph
from converters.smoothing import SCALE_FLOOR


def quantise_weight(
    graph: Graph, node: onnx.NodeProto, hessian: gptq.Moments | None, *, group: int | None = None
) -> None:
    """Round the weight of a linear layer to INT8, and have the layer read it from there.

    Args:
        graph: what holds the layer.
        node: the layer, a MatMul by a weight [in, out].
        hessian: of its input, for GPTQ; None rounds to the nearest.
        group: how many input channels share a scale for each output channel; None: all do. It must
            divide them, and needs opset 21.
    """
    weight = graph.weight(node)
    inputs, outputs = weight.shape
    blocks = weight.reshape(-1, group or inputs, outputs)
    scale = np.maximum(np.abs(blocks).max(axis=1), SCALE_FLOOR) / gptq.LARGEST
    scale = scale.astype(np.float32)  # [groups, out]
    steps = np.repeat(scale, blocks.shape[1], axis=0)
    if hessian is None:
        values = np.clip(np.rint(weight / steps), -gptq.LARGEST, gptq.LARGEST).astype(np.int8)
    else:
        values = gptq.round_weight(weight, steps, hessian)
    told = scale[0] if group is None else scale
    quantised = f"{node.output[0]}_int8"
    parameters = [
        graph.add_weight(quantised, values),
        graph.add_weight(f"{quantised}_scale", told),
        graph.add_weight(f"{quantised}_zero", np.zeros(told.shape, np.int8)),
    ]
    axes = {"axis": 1} if group is None else {"axis": 0, "block_size": group}
    back = f"{quantised}_float"
    graph.insert_before(node, helper.make_node("DequantizeLinear", parameters, [back], **axes))
    node.input[1] = back
