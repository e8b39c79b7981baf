"""Static INT8: integer matrix products with ranges fixed at build time, so batch-mates cannot matter.

A linear layer is a MatMul whose second input is a weight. Layers that read the same activation x
form a group (query, key and value), which shares one smoothing scale s and one range:

    x @ W  =  (x / s) @ (s W),    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)

(SmoothQuant, Xiao et al. 2023, eq. 4.) A post-LN transformer cannot fold 1/s into its LayerNorm,
whose output also feeds the residual, so 1/s becomes a Mul before the group. Between the value
projection and the output projection attention only mixes tokens, so there 1/s folds into the value
projection's weight. Activations become UINT8 per tensor, weights INT8 per output channel, written
as QuantizeLinear/DequantizeLinear pairs, which ONNX Runtime and OpenVINO both turn into integer
kernels. The ranges come from the observed extremes: clipping them was tried and lost fidelity.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from serve_app.errors import ConversionError

TokenBatch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # ids, mask: [batch, tokens]
Floats = npt.NDArray[np.float32]

DEFAULT_ALPHA = 0.8
MAX_OBSERVED_TOKENS = 2048  # a forward pass with every activation kept: ~150 MB for a 384-dim BERT
SCALE_FLOOR = 1e-5
INTEGER_OPS = frozenset({"MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul", "QGemm"})
MOVES_ONLY = frozenset({"Reshape", "Transpose"})  # ops through which a channel keeps its values


@dataclass(frozen=True, slots=True)
class Int8Report:
    """What the conversion did; every linear layer came out as an integer product."""

    linears: int
    integer_linears: int
    calibrated_tensors: int
    scales_inserted: int
    scales_folded: int


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """MatMul nodes that read the same activation, each with a weight [in, out] of its own."""

    activation: str
    nodes: tuple[onnx.NodeProto, ...]


@dataclass(frozen=True, slots=True)
class ChannelRange:
    """Least and greatest value of each input channel, float32 [in], over all real tokens."""

    low: Floats
    high: Floats

    def divided_by(self, scale: Floats) -> "ChannelRange":
        return ChannelRange(self.low / scale, self.high / scale)


class Graph:
    """An ONNX graph with the three lookups that rewriting needs: producer, weight, position."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
        self.producers = {name: node for node in model.graph.node for name in node.output}

    def linear_groups(self) -> list[LinearGroup]:
        """Every MatMul by a 2-D weight, grouped by the activation it reads."""
        groups: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            if node.op_type == "MatMul" and self.weight(node).ndim == 2:
                groups.setdefault(node.input[0], []).append(node)
        return [LinearGroup(name, tuple(nodes)) for name, nodes in groups.items()]

    def weight(self, node: onnx.NodeProto) -> Floats:
        return self.weights.get(node.input[1], np.empty(0, np.float32))

    def add_weight(self, name: str, values: npt.NDArray[np.generic]) -> str:
        self.weights[name] = values
        return name

    def insert_before(self, target: onnx.NodeProto, *nodes: onnx.NodeProto) -> None:
        position = next(i for i, node in enumerate(self.model.graph.node) if node is target)
        for offset, node in enumerate(nodes):
            self.model.graph.node.insert(position + offset, node)

    def save(self, out_file: Path) -> None:
        """Write the graph with those weights that a node still reads."""
        graph = self.model.graph
        used = {name for node in graph.node for name in node.input}
        del graph.initializer[:]
        graph.initializer.extend(
            numpy_helper.from_array(np.ascontiguousarray(values), name)
            for name, values in self.weights.items()
            if name in used
        )
        onnx.save(self.model, str(out_file))


def quantize_static(
    fp32_file: Path,
    out_file: Path,
    *,
    batches: Sequence[TokenBatch],
    alpha: float = DEFAULT_ALPHA,
) -> Int8Report:
    """Write the INT8 form of the raw export `fp32_file`, calibrated on `batches`.

    `batches` are (input_ids, attention_mask), int64 [batch, tokens]; padding is left out of the
    ranges. Raises `ConversionError` when a linear layer would stay in float.
    """
    graph = Graph(onnx.load(str(fp32_file)))
    groups = graph.linear_groups()
    linears = sum(len(group.nodes) for group in groups)
    if not linears:
        raise ConversionError(f"{fp32_file}: no MatMul by a constant weight, nothing to quantise")
    ranges = observe(fp32_file, [group.activation for group in groups], batches=batches)
    if len(ranges) < len(groups):
        raise ConversionError(f"only {len(ranges)} of {len(groups)} activations were calibrated")
    folded = 0
    for group in reversed(groups):  # a fold changes the weights of an earlier group
        scale = smoothing_scale(graph, group, ranges[group.activation], alpha=alpha)
        is_folded = fold_into_values(graph, group, scale)
        folded += is_folded
        smooth(graph, group, scale, insert=not is_folded)
        add_quantisation(graph, group, ranges[group.activation].divided_by(scale))
    with tempfile.TemporaryDirectory(dir=out_file.parent, prefix=".int8-") as folder:
        draft = Path(folder) / out_file.name
        graph.save(draft)
        integer_linears = count_integer_products(draft)
        if integer_linears < linears:
            raise ConversionError(f"only {integer_linears} of {linears} linear layers are integer")
        os.replace(draft, out_file)
    return Int8Report(linears, integer_linears, len(ranges), len(groups) - folded, folded)


def observe(
    fp32_file: Path, activations: Sequence[str], *, batches: Sequence[TokenBatch]
) -> dict[str, ChannelRange]:
    """Run `batches` through the FP32 graph and return each activation's range per channel."""
    model = onnx.load(str(fp32_file))
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in activations)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    ranges: dict[str, ChannelRange] = {}
    for input_ids, attention_mask in _small(batches):
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        for name, values in zip(activations, session.run(None, feeds), strict=True):
            rows = _real_rows(values, attention_mask)
            seen = ChannelRange(rows.min(axis=0), rows.max(axis=0))
            known = ranges.get(name, seen)
            ranges[name] = ChannelRange(
                np.minimum(known.low, seen.low), np.maximum(known.high, seen.high)
            )
    return ranges


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


def smoothing_scale(
    graph: Graph, group: LinearGroup, observed: ChannelRange, *, alpha: float
) -> Floats:
    """SmoothQuant's scale of each input channel, float32 [in]."""
    activation = np.maximum(np.abs(observed.low), np.abs(observed.high))
    weight = np.max([np.abs(graph.weight(node)).max(axis=1) for node in group.nodes], axis=0)
    scale = activation**alpha / np.maximum(weight, SCALE_FLOOR) ** (1 - alpha)
    return np.maximum(scale, SCALE_FLOOR).astype(np.float32)


def fold_into_values(graph: Graph, group: LinearGroup, scale: Floats) -> bool:
    """Divide the value projection's output channels by `scale`; False where there is none.

    The pattern: MatMul by a weight -> (Add bias) -> moves -> attention MatMul -> moves -> group.
    """
    mix = graph.producers.get(_origin(graph, group.activation))
    if mix is None or mix.op_type != "MatMul" or mix.input[1] in graph.weights:
        return False
    bias_add = graph.producers.get(_origin(graph, mix.input[1]))
    if bias_add is None or bias_add.op_type != "Add":
        return False
    bias_index = int(bias_add.input[1] in graph.weights)
    product = graph.producers.get(bias_add.input[1 - bias_index])
    bias = graph.weights.get(bias_add.input[bias_index])
    if product is None or bias is None or graph.weight(product).shape[-1] != len(scale):
        return False
    name = product.output[0]
    product.input[1] = graph.add_weight(f"{name}_folded_weight", graph.weight(product) / scale)
    bias_add.input[bias_index] = graph.add_weight(f"{name}_folded_bias", bias / scale)
    return True


def _origin(graph: Graph, name: str) -> str:
    """The tensor from which `name` comes by moves alone."""
    node = graph.producers.get(name)
    return _origin(graph, node.input[0]) if node and node.op_type in MOVES_ONLY else name


def smooth(graph: Graph, group: LinearGroup, scale: Floats, *, insert: bool) -> None:
    """Multiply the weights' rows by `scale` and, unless folded elsewhere, the activation by 1/scale."""
    for node in group.nodes:
        name = f"{node.output[0]}_smoothed_weight"
        node.input[1] = graph.add_weight(name, graph.weight(node) * scale[:, None])
    if not insert:
        return
    smoothed = f"{group.activation}_smoothed"
    inverse = graph.add_weight(f"{smoothed}_inverse", (1 / scale).astype(np.float32))
    mul = helper.make_node("Mul", [group.activation, inverse], [smoothed], name=smoothed)
    graph.insert_before(group.nodes[0], mul)
    for node in group.nodes:
        node.input[0] = smoothed


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
        node.input[0] = back


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
