"""ONNX FP16: half the size everywhere; faster only where the runtime has FP16 kernels.

On a CPU ONNX Runtime casts back to FP32 around each product, so there it is a form of storage. On a
GPU, TensorRT builds its engine from this graph. What follows the last linear layer stays in FP32: a
sum over a text's tokens leaves FP16's range before a vector does, and a norm rounded to FP16 leaves
lengths of 1.0002.
"""

import logging
from pathlib import Path

import onnx
from onnx import TensorProto
from onnxruntime.transformers.float16 import convert_float_to_float16

from converters.onnx_graph import Graph, name_nodes


def to_fp16(fp32_file: Path, out_file: Path) -> None:
    """Write the FP16 form of an unfused FP32 export; inputs and output keep their types.

    `onnxconverter_common.float16` does the same job in name, and its output does not load.
    """
    graph = Graph.load(fp32_file)
    name_nodes(graph)
    tail = _after_the_last_linear(graph)
    graph.save(out_file)
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it names each weight below FP16's smallest step
    try:
        half = convert_float_to_float16(
            onnx.load(str(out_file)), keep_io_types=True, node_block_list=sorted(tail)
        )
    finally:
        logging.disable(previous)
    _drop_round_trips(half, tail)
    _drop_twins(half)
    onnx.save(half, str(out_file))


def _after_the_last_linear(graph: Graph) -> set[str]:
    """Names of the nodes whose results reach no linear layer: residual, norm, pooling."""
    needed: set[str] = set()
    tail = set()
    for node in reversed(graph.model.graph.node):
        if graph.is_linear(node) or not needed.isdisjoint(node.output):
            needed.update(node.input)
        else:
            tail.add(node.name)
    return tail


def _drop_round_trips(model: onnx.ModelProto, in_fp32: set[str]) -> None:
    """The converter rounds between neighbours that both stay in FP32: hand values on unrounded."""
    made_in_fp32 = {out for n in model.graph.node if n.name in in_fp32 for out in n.output}
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    unrounded = {
        cast.output[0]: cast.input[0]
        for cast in casts
        if cast.input[0] in made_in_fp32 and cast.attribute[0].i == TensorProto.FLOAT16
    }
    for cast in casts:
        if cast.input[0] in unrounded and cast.attribute[0].i == TensorProto.FLOAT:
            cast.input[0] = unrounded[cast.input[0]]


def _drop_twins(model: onnx.ModelProto) -> None:
    """Some versions of the converter add one cast twice, which no runtime loads: leave the first."""
    made: set[str] = set()
    for node in list(model.graph.node):
        if made.intersection(node.output):
            model.graph.node.remove(node)
        made.update(node.output)
