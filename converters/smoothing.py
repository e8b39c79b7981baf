"""SmoothQuant: share the difficulty of rounding between activations and weights.

Layers that read the same activation x form a group (query, key and value), which shares one scale:

    x @ W  =  (x / s) @ (s W),    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)

(Xiao et al. 2023, eq. 4.) A post-LN transformer cannot fold 1/s into its LayerNorm, whose output
also feeds the residual, so 1/s becomes a Mul before the group. Between the value projection and the
output projection attention only mixes tokens, so there 1/s folds into the value projection.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from onnx import helper

from converters.calibration import TokenBatch, activations, open_session, run
from converters.onnx_graph import Floats, Graph, LinearGroup, require_linear_groups
from serve_app.errors import ConversionError

SCALE_FLOOR = 1e-5
MAX_ERROR = 1e-3  # of a unit vector's component; rounding gives about 1e-6


@dataclass(frozen=True, slots=True)
class ChannelRange:
    """Least and greatest value of each input channel, float32 [in], over all real tokens."""

    low: Floats
    high: Floats

    def divided_by(self, scale: Floats) -> "ChannelRange":
        return ChannelRange(self.low / scale, self.high / scale)


Ranges = Mapping[str, ChannelRange]  # by activation


@dataclass(frozen=True, slots=True)
class Smoothed:
    """A float graph ready for rounding, the ranges of its linear layers' inputs, folds made."""

    graph: Graph
    ranges: Ranges
    folded: int


def observe(fp32_file: Path, *, batches: Sequence[TokenBatch]) -> Ranges:
    """Run `batches` through the FP32 graph and return what its linear layers read, by channel.

    Raises:
        ConversionError: there is no linear layer, or an activation was not seen.
    """
    groups = require_linear_groups(Graph.load(fp32_file), fp32_file)
    names = [group.activation for group in groups]
    ranges: dict[str, ChannelRange] = {}
    for name, rows in activations(fp32_file, names, batches):
        seen = ChannelRange(rows.min(axis=0), rows.max(axis=0))
        known = ranges.get(name, seen)
        ranges[name] = ChannelRange(
            np.minimum(known.low, seen.low), np.maximum(known.high, seen.high)
        )
    if len(ranges) < len(names):
        raise ConversionError(f"only {len(ranges)} of {len(names)} activations were calibrated")
    return ranges


def smoother(
    fp32_file: Path, ranges: Ranges, *, alpha: float, batch: TokenBatch
) -> Callable[[], Smoothed]:
    """What makes smoothed graphs whose vectors, of `batch`, are the FP32 graph's.

    Where folding changes them, as the pattern was found where channels do not line up, it does
    without.
    """
    smoothed = partial(smooth, fp32_file, ranges, alpha=alpha)
    fold = _same_vectors(fp32_file, smoothed(fold=True).graph, batch)
    return partial(smoothed, fold=fold)


def _same_vectors(fp32_file: Path, graph: Graph, batch: TokenBatch) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        smoothed_file = Path(folder) / "smoothed.onnx"
        graph.save(smoothed_file)
        files = (fp32_file, smoothed_file)
        expected, found = (run(open_session(str(file)), batch)[0] for file in files)
    return bool(np.abs(expected - found).max() <= MAX_ERROR)


def smoothing_scale(
    graph: Graph, group: LinearGroup, observed: ChannelRange, *, alpha: float
) -> Floats:
    """SmoothQuant's scale of each input channel, float32 [in]."""
    activation = np.maximum(np.abs(observed.low), np.abs(observed.high))
    weight = np.max([np.abs(graph.weight(node)).max(axis=1) for node in group.nodes], axis=0)
    scale = activation**alpha / np.maximum(weight, SCALE_FLOOR) ** (1 - alpha)
    floored: Floats = np.maximum(scale, SCALE_FLOOR).astype(np.float32)
    return floored


def smooth(fp32_file: Path, ranges: Ranges, *, alpha: float, fold: bool) -> Smoothed:
    """Spread each group's activation evenly over its channels; the vectors stay what they were."""
    graph = Graph.load(fp32_file)
    smoothed_ranges: dict[str, ChannelRange] = {}
    folded = 0
    for group in reversed(graph.linear_groups()):  # a fold changes the weights of an earlier group
        scale = smoothing_scale(graph, group, ranges[group.activation], alpha=alpha)
        for node in group.nodes:
            name = f"{node.output[0]}_smoothed_weight"
            node.input[1] = graph.add_weight(name, graph.weight(node) * scale[:, None])
        is_folded = fold and _fold_into_values(graph, group, scale)
        source = group.activation if is_folded else _insert_division(graph, group, scale)
        smoothed_ranges[source] = ranges[group.activation].divided_by(scale)
        folded += is_folded
    return Smoothed(graph, smoothed_ranges, folded)


def _fold_into_values(graph: Graph, group: LinearGroup, scale: Floats) -> bool:
    """Divide the value projection's output channels by `scale`; False where there is none.

    The pattern: linear -> Add bias -> moves -> attention MatMul -> moves -> group.
    """
    mix = graph.producers.get(graph.origin(group.activation))
    if mix is None or mix.op_type != "MatMul" or graph.is_linear(mix):
        return False
    bias_add = graph.producers.get(graph.origin(mix.input[1]))
    if bias_add is None or bias_add.op_type != "Add":
        return False
    bias_index = int(bias_add.input[1] in graph.weights)
    bias = graph.weights.get(bias_add.input[bias_index])
    values = graph.producers.get(bias_add.input[1 - bias_index])
    if bias is None or values is None or not graph.is_linear(values):
        return False
    if graph.weight(values).shape[1] != len(scale) or bias.shape != scale.shape:
        return False
    name = values.output[0]
    values.input[1] = graph.add_weight(f"{name}_folded_weight", graph.weight(values) / scale)
    bias_add.input[bias_index] = graph.add_weight(f"{name}_folded_bias", bias / scale)
    return True


def _insert_division(graph: Graph, group: LinearGroup, scale: Floats) -> str:
    smoothed = f"{group.activation}_smoothed"
    inverse = graph.add_weight(f"{smoothed}_inverse", (1 / scale).astype(np.float32))
    mul = helper.make_node("Mul", [group.activation, inverse], [smoothed], name=smoothed)
    graph.insert_before(group.nodes[0], mul)
    for node in group.nodes:
        node.input[0] = smoothed
    return smoothed
