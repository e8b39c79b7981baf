"""Static INT8: integer matrix products with ranges fixed at build time, so batch-mates cannot matter.

A linear layer is a MatMul whose second input is a weight. After smoothing (`smoothing.py`) its
activation becomes UINT8 per tensor and its weight INT8 per output channel, written as
QuantizeLinear/DequantizeLinear pairs, which ONNX Runtime and OpenVINO both turn into integer
kernels. The ranges come from the observed extremes: clipping them was tried and lost fidelity.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper

from converters.onnx_graph import Floats, Graph, LinearGroup
from converters.smoothing import SCALE_FLOOR, ChannelRange, smooth
from serve_app.errors import ConversionError

TokenBatch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # ids, mask: [batch, tokens]

DEFAULT_ALPHA = 0.8
MAX_OBSERVED_TOKENS = 2048  # a forward pass with every activation kept: ~150 MB for a 384-dim BERT
INPUT_NAMES = ("input_ids", "attention_mask")
INTEGER_OPS = frozenset({"MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul", "QGemm"})
MAX_SMOOTHING_ERROR = 1e-3  # of a unit vector's component; rounding gives about 1e-6


@dataclass(frozen=True, slots=True)
class Int8Report:
    """What the conversion did; every linear layer came out as an integer product."""

    linears: int
    integer_linears: int
    calibrated_tensors: int
    scales_inserted: int
    scales_folded: int


def quantize_static(
    fp32_file: Path,
    out_file: Path,
    *,
    batches: Sequence[TokenBatch],
    alpha: float = DEFAULT_ALPHA,
) -> Int8Report:
    """Write the INT8 form of an unfused FP32 export.

    Args:
        fp32_file: what `to_onnx.export` wrote.
        out_file: the INT8 graph, with the same inputs and output.
        batches: calibration, (input_ids, attention_mask), int64 [batch, tokens]. Padding is left
            out of the ranges, so any batching gives the same ones.
        alpha: how much of the activations' spread moves to the weights, 0 (none) to 1 (all).

    Raises:
        ConversionError: there is nothing to quantise, or a linear layer would stay in float.
    """
    groups = Graph.load(fp32_file).linear_groups()
    linears = sum(len(group.nodes) for group in groups)
    if not linears:
        raise ConversionError(f"{fp32_file}: no MatMul by a constant weight, nothing to quantise")
    ranges = observe(fp32_file, [group.activation for group in groups], batches=batches)
    if len(ranges) < len(groups):
        raise ConversionError(f"only {len(ranges)} of {len(groups)} activations were calibrated")
    smoothed = smooth(fp32_file, ranges, alpha=alpha, fold=True)
    if not _same_vectors(fp32_file, smoothed.graph, batches[0]):
        # The pattern was found where channels do not line up: do without folding.
        smoothed = smooth(fp32_file, ranges, alpha=alpha, fold=False)
    for group in smoothed.graph.linear_groups():
        add_quantisation(smoothed.graph, group, smoothed.ranges[group.activation])
    integer_linears = _save_if_integer(smoothed.graph, out_file, linears=linears)
    return Int8Report(
        linears=linears,
        integer_linears=integer_linears,
        calibrated_tensors=len(ranges),
        scales_inserted=len(groups) - smoothed.folded,
        scales_folded=smoothed.folded,
    )


def _save_if_integer(graph: Graph, out_file: Path, *, linears: int) -> int:
    with tempfile.TemporaryDirectory(dir=out_file.parent, prefix=".int8-") as folder:
        draft = Path(folder) / out_file.name
        graph.save(draft)
        found = count_integer_products(draft)
        if found < linears:
            raise ConversionError(f"only {found} of {linears} linear layers came out as integer")
        draft.replace(out_file)
    return found


def observe(
    fp32_file: Path, activations: Sequence[str], *, batches: Sequence[TokenBatch]
) -> dict[str, ChannelRange]:
    """Run `batches` through the FP32 graph and return each activation's range per channel."""
    model = onnx.load(str(fp32_file))
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in activations)
    session = _session(model.SerializeToString())
    ranges: dict[str, ChannelRange] = {}
    for batch in _small(batches):
        for name, values in zip(activations, _run(session, batch), strict=True):
            rows = _real_rows(values, batch[1])
            seen = ChannelRange(rows.min(axis=0), rows.max(axis=0))
            known = ranges.get(name, seen)
            ranges[name] = ChannelRange(
                np.minimum(known.low, seen.low), np.maximum(known.high, seen.high)
            )
    return ranges


def _session(model: bytes | str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # converting must leave the machine usable
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession, batch: TokenBatch) -> list[Floats]:
    outputs: list[Floats] = session.run(None, dict(zip(INPUT_NAMES, batch, strict=True)))
    return outputs


def _small(batches: Sequence[TokenBatch]) -> Iterator[TokenBatch]:
    """Split batches by rows until each holds few enough tokens to keep all its activations."""
    for input_ids, attention_mask in batches:
        rows = max(1, MAX_OBSERVED_TOKENS // input_ids.shape[1])
        for start in range(0, len(input_ids), rows):
            yield input_ids[start : start + rows], attention_mask[start : start + rows]


def _real_rows(values: Floats, attention_mask: npt.NDArray[np.int64]) -> Floats:
    """The activation of real tokens, [n, channels], whether it is laid out by text or by token."""
    flat = values.reshape(-1, values.shape[-1])
    is_per_token = len(flat) == attention_mask.size
    return flat[attention_mask.reshape(-1) > 0] if is_per_token else flat


def _same_vectors(fp32_file: Path, graph: Graph, batch: TokenBatch) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        smoothed_file = Path(folder) / "smoothed.onnx"
        graph.save(smoothed_file)
        files = (fp32_file, smoothed_file)
        expected, found = (_run(_session(str(file)), batch)[0] for file in files)
    return bool(np.abs(expected - found).max() <= MAX_SMOOTHING_ERROR)


def add_quantisation(graph: Graph, group: LinearGroup, smoothed: ChannelRange) -> None:
    """Round the group's activation to UINT8 and its weights to INT8, as QDQ pairs."""
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
    for node in group.nodes:
        _quantise_weight(graph, node)
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


def _quantise_weight(graph: Graph, node: onnx.NodeProto) -> None:
    weight = graph.weight(node)
    scale = np.maximum(np.abs(weight).max(axis=0) / 127, SCALE_FLOOR / 127).astype(np.float32)
    quantised = f"{node.output[0]}_int8"
    parameters = [
        graph.add_weight(quantised, np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)),
        graph.add_weight(f"{quantised}_scale", scale),
        graph.add_weight(f"{quantised}_zero", np.zeros(len(scale), np.int8)),
    ]
    back = f"{quantised}_float"
    graph.insert_before(node, helper.make_node("DequantizeLinear", parameters, [back], axis=1))
    node.input[1] = back


def count_integer_products(onnx_file: Path) -> int:
    """How many integer MatMuls ONNX Runtime makes of the file when it loads it."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 3  # it warns that the optimised file fits this machine only
        ort.InferenceSession(str(onnx_file), options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return sum(node.op_type in INTEGER_OPS for node in optimized.graph.node)
