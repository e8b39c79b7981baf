"""Dynamic INT8 for OpenVINO, whose vectors stay where they are: ranges are a token's own.

Weights are INT8 with a scale for each `DYNAMIC_GROUP` input channels of each output channel. Their
products stay float products in the file; as it runs, OpenVINO rounds the activation to INT8, too,
with a scale for the same channels of one token (`openvino_engine.py`), and multiplies integers. So
neither batch-mates nor padding can matter, as they do where a range is one for the whole batch
(`to_int8_dynamic.py`), and there are no ranges to calibrate; texts shape the smoothing and the
rounding of weights. On all-MiniLM-L6-v2 a seventh of static INT8's loss (mean 1 - cosine) remains, at
two thirds to three quarters of its speed; docs/negative-results.md has what else was tried.
"""

from collections.abc import Sequence
from pathlib import Path

from converters import gptq
from converters.calibration import TokenBatch
from converters.int8_embeddings import quantise_embeddings
from converters.int8_weights import quantise_weight
from converters.onnx_graph import Graph
from converters.smoothing import Ranges, observe, smoother
from serve_app.engines.base import DYNAMIC_GROUP

ALPHA = 0.65  # a loss (mean 1 - cosine) of 168e-6; at 0.5 191e-6, at 0.75 168e-6
OPSET, IR_VERSION = 21, 10  # the first with a scale for a block of channels


def quantize_weights(
    fp32_file: Path,
    out_file: Path,
    *,
    batches: Sequence[TokenBatch],
    ranges: Ranges | None = None,
) -> int:
    """Write an FP32 export with INT8 weights; returns of how many linear layers.

    Where a layer's input channels are no multiple of `DYNAMIC_GROUP`, they share one scale.

    Args:
        fp32_file: what `to_onnx.export` wrote.
        out_file: the graph, with the same inputs and output.
        batches: calibration, (input_ids, attention_mask), int64 [batch, tokens].
        ranges: what `observe` makes of these, where it was done.

    Raises:
        ConversionError: there is nothing to quantise.
    """
    ranges = ranges or observe(fp32_file, batches=batches)
    smoothed = smoother(fp32_file, ranges, alpha=ALPHA, batch=batches[0])().graph
    layers = smoothed.linear_groups()
    moments = gptq.input_moments(smoothed, [layer.activation for layer in layers], batches)
    for layer in layers:
        hessian = moments[layer.activation].damped()
        shared = None if len(hessian) % DYNAMIC_GROUP else DYNAMIC_GROUP
        for node in layer.nodes:
            quantise_weight(smoothed, node, hessian, group=shared)
    quantise_embeddings(smoothed)
    _raise_opset(smoothed)
    smoothed.save(out_file)
    return sum(len(layer.nodes) for layer in layers)


def _raise_opset(graph: Graph) -> None:
    """From `to_onnx.py`'s 18 to 21 standard operators gained types, and changed nothing else."""
    graph.model.ir_version = max(graph.model.ir_version, IR_VERSION)
    for opset in graph.model.opset_import:
        if opset.domain in {"", "ai.onnx"}:
            opset.version = max(opset.version, OPSET)
