"""Static INT8: integer matrix products with ranges fixed at build time, so batch-mates cannot matter.

A linear layer is a MatMul whose second input is a weight. After smoothing (`smoothing.py`) its
activation becomes UINT8 per tensor and its weight INT8 per output channel, written as
QuantizeLinear/DequantizeLinear pairs, which ONNX Runtime and OpenVINO both turn into integer
kernels. The ranges come from the observed extremes: clipping them was tried and lost fidelity.
Weights are rounded twice, to the nearest and by GPTQ (`gptq.py`), and the closer graph is kept; its biases
are then corrected (`bias_correction.py`), unless texts clearly lose by it. Embedding tables are INT8 by row.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from converters import gptq
from converters.bias_correction import correct_biases
from converters.calibration import Losses, TokenBatch, distances, mean_of, split
from converters.int8_embeddings import quantise_embeddings
from converters.int8_weights import quantise_weight
from converters.onnx_graph import Graph, LinearGroup
from converters.smoothing import SCALE_FLOOR, ChannelRange, Ranges, Smoothed, observe, smoother
from serve_app.errors import ConversionError

DEFAULT_ALPHA = 0.8
SURE = 2  # standard errors
INTEGER_OPS = frozenset({"MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul", "QGemm"})


@dataclass(frozen=True, slots=True)
class Int8Report:
    """What the conversion did; every linear layer came out as an integer product."""

    linears: int
    integer_linears: int
    calibrated_tensors: int
    scales_inserted: int
    scales_folded: int
    gptq: bool  # whether its rounding was closer than rounding to the nearest
    biases_corrected: bool  # unless that did harm


def quantize_static(
    fp32_file: Path,
    out_file: Path,
    *,
    batches: Sequence[TokenBatch],
    ranges: Ranges | None = None,
    alpha: float = DEFAULT_ALPHA,
    reference_file: Path | None = None,
) -> Int8Report:
    """Write the INT8 form of an unfused FP32 export.

    Args:
        fp32_file: what `to_onnx.export` wrote.
        out_file: the INT8 graph, with the same inputs and output.
        batches: calibration, (input_ids, attention_mask), int64 [batch, tokens]. Padding is left
            out of the ranges, so any batching gives the same ones.
        ranges: what `observe` makes of these, where it was done.
        alpha: how much of the activations' spread moves to the weights, 0 (none) to 1 (all).
        reference_file: the graph to come close to, where that is not `fp32_file` itself.

    Raises:
        ConversionError: there is nothing to quantise, or a linear layer would stay in float.
    """
    ranges = ranges or observe(fp32_file, batches=batches)
    smoothed_again = smoother(fp32_file, ranges, alpha=alpha, batch=batches[0])
    learn, judge = split(batches)
    with tempfile.TemporaryDirectory(dir=out_file.parent, prefix=".int8-") as folder:
        nearest, rounded, corrected = (
            Path(folder) / f"{n}.onnx" for n in ("nearest", "gptq", "bias")
        )
        smoothed = smoothed_again()
        groups = smoothed.graph.linear_groups()
        linears = sum(len(group.nodes) for group in groups)
        moments = gptq.input_moments(smoothed.graph, list(smoothed.ranges), learn)
        _quantise(smoothed, {})
        integer_linears = _save_integer(smoothed.graph, nearest, linears=linears)
        again = smoothed_again()
        _quantise(again, moments)
        again.graph.save(rounded)
        goal = reference_file or fp32_file
        losses = {file: distances(goal, file, judge) for file in (nearest, rounded)}
        best = min(losses, key=lambda file: mean_of(losses[file]))
        correct_biases(fp32_file, best, corrected, batches=learn)
        is_worse = is_harm(losses[best], distances(goal, corrected, judge))
        kept = best if is_worse else corrected
        kept.replace(out_file)
    return Int8Report(
        linears=linears,
        integer_linears=integer_linears,
        calibrated_tensors=len(ranges),
        scales_inserted=len(groups) - smoothed.folded,
        scales_folded=smoothed.folded,
        gptq=best == rounded,
        biases_corrected=kept == corrected,
    )


def is_harm(before: Losses, after: Losses) -> bool:
    """Whether texts are farther from their vectors by more than chance explains.

    On all-MiniLM-L6-v2 one of 64 texts made the mean worse by a change that is better by 6 % over 400.

    Args:
        before: 1 - cosine, one a text.
        after: the same texts'.
    """
    if not len(before) or not np.isfinite(after).all():
        return True
    worse = after - before
    return bool(worse.mean() > SURE * worse.std() / len(worse) ** 0.5)


def _save_integer(graph: Graph, file: Path, *, linears: int) -> int:
    graph.save(file)
    found = count_integer_products(file)
    if found < linears:
        raise ConversionError(f"only {found} of {linears} linear layers came out as integer")
    return found


def _quantise(smoothed: Smoothed, moments: Mapping[str, gptq.InputMoments]) -> None:
    for group in smoothed.graph.linear_groups():
        observed = smoothed.ranges[group.activation]
        add_quantisation(smoothed.graph, group, observed, moments=moments.get(group.activation))
    quantise_embeddings(smoothed.graph)


def add_quantisation(
    graph: Graph,
    group: LinearGroup,
    smoothed: ChannelRange,
    *,
    moments: gptq.InputMoments | None = None,
) -> None:
    """Round the group's activation to UINT8 and its weights to INT8, as QDQ pairs.

    With `moments` of its activation, weights are rounded by GPTQ, else to the nearest.
    """
    low = min(float(smoothed.low.min()), 0.0)
    high = max(float(smoothed.high.max()), 0.0)
    scale = max((high - low) / 255, SCALE_FLOOR)
    source = group.nodes[0].input[0]
    quantised = f"{source}_uint8"
    parameters = [
        graph.add_weight(f"{quantised}_scale", np.array(scale, np.float32)),
        graph.add_weight(f"{quantised}_zero", np.array(round(-low / scale), np.uint8)),
    ]
    back = f"{quantised}_float"
    graph.insert_before(
        group.nodes[0],
        helper.make_node("QuantizeLinear", [source, *parameters], [quantised]),
        helper.make_node("DequantizeLinear", [quantised, *parameters], [back]),
    )
    hessian = None if moments is None else moments.damped(step=scale)
    for node in group.nodes:
        quantise_weight(graph, node, hessian)
        _part_from_relu(graph, node)
        node.input[0] = back


def _part_from_relu(graph: Graph, linear: onnx.NodeProto) -> None:
    """Write a Relu right after a linear layer (T5 has one, without a bias between) as Max(x, 0).

    ONNX Runtime 1.32 takes the pair for one operator, finds no integer kernel for it, and leaves
    the product in float.
    """
    for node in graph.model.graph.node:
        if node.op_type == "Relu" and node.input[0] == linear.output[0]:
            zero = graph.add_weight(f"{node.output[0]}_zero", np.zeros((), np.float32))
            node.op_type = "Max"
            node.input.append(zero)


def count_integer_products(onnx_file: Path) -> int:
    """How many integer MatMuls ONNX Runtime makes of the file when it loads it."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 3  # it warns that the optimised file fits this machine only
        ort.InferenceSession(str(onnx_file), options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return sum(node.op_type in INTEGER_OPS for node in optimized.graph.node)
