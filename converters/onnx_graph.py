"""What rewriting an ONNX graph needs: its linear layers, who makes a tensor, weights as arrays.

Everything is found by structure, nothing by name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from serve_app.errors import ConversionError

Floats = npt.NDArray[np.float32]

MATRIX_NDIM = 2
MOVES_ONLY = frozenset({"Reshape", "Transpose"})  # ops that move values and change none


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """MatMul nodes that read the same activation, each with a weight [in, out] of its own."""

    activation: str
    nodes: tuple[onnx.NodeProto, ...]


class Graph:
    """An ONNX graph with what rewriting needs: who makes a tensor, and the weights as arrays."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
        for node in list(model.graph.node):  # a shared weight's other uses, as TorchScript has them
            if node.op_type == "Identity" and node.input[0] in self.weights:
                self.weights[node.output[0]] = self.weights[node.input[0]]
                model.graph.node.remove(node)
        self.producers = {name: node for node in model.graph.node for name in node.output}

    @classmethod
    def load(cls, file: Path) -> "Graph":
        return cls(onnx.load(str(file)))

    def linear_groups(self) -> list[LinearGroup]:
        """Every MatMul of what depends on the inputs by a matrix of weights, grouped by the former.

        Products of constants (DeBERTa's projected positions) are left out: runtimes fold them.
        """
        varying = {tensor.name for tensor in self.model.graph.input}
        groups: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            if varying.isdisjoint(node.input):
                continue
            varying.update(node.output)
            if self.is_linear(node):
                groups.setdefault(node.input[0], []).append(node)
        return [LinearGroup(name, tuple(nodes)) for name, nodes in groups.items()]

    def is_linear(self, node: onnx.NodeProto) -> bool:
        if node.op_type != "MatMul" or node.input[1] not in self.weights:
            return False
        return bool(self.weights[node.input[1]].ndim == MATRIX_NDIM)

    def weight(self, linear: onnx.NodeProto) -> Floats:
        """Weights of a linear layer, float32 [in, out]."""
        weight: Floats = self.weights[linear.input[1]]
        return weight

    def add_weight(self, name: str, values: npt.NDArray[Any]) -> str:
        self.weights[name] = values
        return name

    def origin(self, name: str) -> str:
        """The tensor from which `name` comes by moves alone."""
        node = self.producers.get(name)
        return self.origin(node.input[0]) if node and node.op_type in MOVES_ONLY else name

    def insert_before(self, target: onnx.NodeProto, *nodes: onnx.NodeProto) -> None:
        made = target.output[0]  # unique in a graph, unlike a node's name
        position = next(i for i, n in enumerate(self.model.graph.node) if made in n.output)
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


def require_linear_groups(graph: Graph, file: Path) -> list[LinearGroup]:
    """The linear layers of the graph in `file`.

    Raises:
        ConversionError: there is none.
    """
    groups = graph.linear_groups()
    if not groups:
        raise ConversionError(f"{file}: no MatMul by a constant weight, nothing to quantise")
    return groups


def name_nodes(graph: Graph) -> None:
    """Give every node a name: tools that take lists of nodes know no other handle."""
    for index, node in enumerate(graph.model.graph.node):
        node.name = node.name or f"node_{index}"
