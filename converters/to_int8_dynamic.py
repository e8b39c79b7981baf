"""Dynamic INT8: activations are rounded with ranges taken from each batch as it runs.

It needs no calibration, and pays for that: the range is one for the whole batch, so a text's vector
moves with its batch-mates and its padding (1 - cosine of 0.03 measured here, 0.1 in PyTorch). ONNX Runtime's maintainers call
that expected. Users ask for these variants, so they are built and measured; the ladder refuses them.
"""

import logging
import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization import quantize_dynamic as ort_quantize_dynamic

from converters.onnx_graph import Graph, name_nodes, require_linear_groups
from serve_app.errors import ConversionError


def quantize_dynamic(fp32_file: Path, out_file: Path) -> int:
    """Write the dynamic INT8 form of an unfused FP32 export, and return its integer products.

    Weights are signed and per output channel: unsigned ones run at a third of the speed, and the
    library's defaults kept a p1 of 0.878 where this kept 0.978. Products of two activations stay in float.

    Raises:
        ConversionError: there is nothing to quantise, or a linear layer stays in float.
    """
    graph = Graph.load(fp32_file)
    groups = require_linear_groups(graph, fp32_file)
    linears = [node for group in groups for node in group.nodes]
    # Shared weights behind an Identity are unknown to the quantiser; `Graph` has resolved them.
    name_nodes(graph)
    with tempfile.TemporaryDirectory(dir=out_file.parent, prefix=".int8-") as folder:
        plain, draft = Path(folder) / "plain.onnx", Path(folder) / out_file.name
        graph.save(plain)
        _quantise(plain, draft, [node.name for node in linears])
        found = _integer_products(draft)
        if found < len(linears):
            raise ConversionError(f"only {found} of {len(linears)} linear layers came out integer")
        draft.replace(out_file)
    return found


def _quantise(plain: Path, draft: Path, nodes: list[str]) -> None:
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises a pre-processing that would fuse the graph
    try:
        ort_quantize_dynamic(
            plain,
            draft,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=nodes,
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(previous)


def _integer_products(file: Path) -> int:
    nodes = onnx.load(str(file), load_external_data=False).graph.node
    return sum(node.op_type == "MatMulInteger" for node in nodes)
