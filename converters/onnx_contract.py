"""From the graphs that model hubs ship to this repository's contract.

Hubs ship transformers whose output is a vector per token, often with a `token_type_ids` input. The
contract: `input_ids` and `attention_mask`, int64 [batch, tokens], in; `sentence_embedding`, float32
[batch, dims] of unit length, out. The checkpoint says how to pool.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, compose, helper, version_converter

from converters.to_onnx import INPUT_NAMES, OPSET, OUTPUT_NAME, quiet
from serve_app.engines.pooling import pool
from serve_app.errors import ConversionError
from serve_app.manifest import Checkpoint, Pooling

TYPE_IDS = "token_type_ids"
PER_TEXT = "sentence_embedding"  # preferred: pooled by the file itself
PER_TOKEN = ("token_embeddings", "last_hidden_state")  # before a pooler, which embeds nothing
INTEGERS = {TensorProto.INT64, TensorProto.INT32}
PROBE_SHAPE = (2, 5)  # texts, tokens: unlike each other, so output axes tell themselves
MAX_INSIDE_BYTES = 1_500_000_000
PREFIX = "adopted_"


class _Head(torch.nn.Module):
    """What is missing behind the file's output: pooling, where it is per token, and unit length."""

    def __init__(self, pooling: Pooling | None) -> None:
        super().__init__()
        self.pooling: Pooling | None = pooling

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        vectors = values if self.pooling is None else pool(values, mask, self.pooling)
        return torch.nn.functional.normalize(vectors, dim=-1)


@dataclass(frozen=True, slots=True)
class _Output:
    """The output that becomes the vectors."""

    name: str
    is_per_token: bool


def adopt(model: onnx.ModelProto, out_file: Path, *, facts: Checkpoint) -> None:
    """Write a loaded graph in this repository's form.

    Args:
        model: as `read_onnx` gave it; it is changed.
        out_file: the adopted graph; a large one gets its weights in a file beside it.
        facts: the checkpoint that it claims to be of: its pooling and dims.

    Raises:
        ConversionError: an input or output that is not known, a fixed axis, or other dims.
    """
    _rename_inputs(model)
    output = _find_output(model, facts)
    if output.is_per_token and facts.head:
        raise ConversionError(
            f"the graph ends before the checkpoint's {' and '.join(facts.head)}; "
            "export it with them, or build from the checkpoint"
        )
    _append(model, output, pooling=facts.pooling, scratch=out_file.parent)
    _save(model, out_file)


def _rename_inputs(model: onnx.ModelProto) -> None:
    """Make the inputs int64 ids and mask; type ids become zeros inside."""
    graph = model.graph
    weights = {w.name for w in graph.initializer}  # old files list them among the inputs
    inputs = {i.name: i.type.tensor_type for i in graph.input if i.name not in weights}
    known = {*INPUT_NAMES, TYPE_IDS}
    if set(inputs) - known or not set(inputs) >= set(INPUT_NAMES):
        raise ConversionError(
            f"the graph's inputs are {', '.join(inputs) or 'none'}; it must take "
            f"{' and '.join(INPUT_NAMES)}, and may take {TYPE_IDS}, nothing else"
        )
    first: list[onnx.NodeProto] = []
    for name, kind in inputs.items():
        if kind.elem_type not in INTEGERS:
            raise ConversionError(f"input {name} is not int64 or int32")
        if any(axis.HasField("dim_value") for axis in kind.shape.dim):
            raise ConversionError(f"input {name} has a fixed axis; export it with dynamic axes")
        inner = f"{PREFIX}{name}"
        _rename(graph, name, inner)
        source = INPUT_NAMES[0] if name == TYPE_IDS else name
        if name == TYPE_IDS:
            first.append(helper.make_node("Sub", [source, source], [f"{inner}_zeros"]))
            source = f"{inner}_zeros"
        first.append(helper.make_node("Cast", [source], [inner], to=kind.elem_type))
    del graph.input[:]
    graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in INPUT_NAMES
    )
    for node in reversed(first):
        graph.node.insert(0, node)


def _rename(graph: onnx.GraphProto, name: str, new: str) -> None:
    """Wherever a tensor is made or read, in the bodies of If and Loop too, use another name."""
    for node in graph.node:
        for names in (node.input, node.output):
            for index, found in enumerate(names):
                if found == name:
                    names[index] = new
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, name, new)


def _find_output(model: onnx.ModelProto, facts: Checkpoint) -> _Output:
    """Run the graph once and choose by name and measured shape."""
    shapes = _output_shapes(model)
    texts, tokens = PROBE_SHAPE
    known = [name for name in (PER_TEXT, *PER_TOKEN) if name in shapes]
    for name in known or list(shapes)[: len(shapes) == 1]:
        is_per_token = shapes[name][:-1] == PROBE_SHAPE
        if not is_per_token and shapes[name][:-1] != (texts,):
            continue
        if shapes[name][-1] != facts.dims:
            raise ConversionError(
                f"output {name} has {shapes[name][-1]} dims, and {facts.name} has {facts.dims}: "
                "it is another model's, or has another head"
            )
        return _Output(name, is_per_token=is_per_token)
    seen = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    raise ConversionError(
        f"no output to take vectors from; for {texts} texts of {tokens} tokens there is {seen}, "
        f"expected is {PER_TEXT} [texts, dims] or {' or '.join(PER_TOKEN)} [texts, tokens, dims]"
    )


def _output_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving moves large weights out of what is saved
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "probe.onnx"
        _save(copy, file)
        try:
            session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            ones = np.ones(PROBE_SHAPE, np.int64)
            outputs = session.run(None, dict.fromkeys(INPUT_NAMES, ones))
        except Exception as error:  # ONNX Runtime's derive from nothing narrower
            raise ConversionError(f"ONNX Runtime cannot run it ({first_line(error)})") from error
    names = [output.name for output in session.get_outputs()]
    return {name: np.shape(values) for name, values in zip(names, outputs, strict=True)}


def _export_head(pooling: Pooling | None, *, opset: int, scratch: Path) -> onnx.ModelProto:
    """What is missing behind the output, traced from the code that serves, in the file's opset."""
    texts, tokens = PROBE_SHAPE
    shape = (texts, 8) if pooling is None else (texts, tokens, 8)
    axes = {0: "batch", 1: "tokens"}
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".head-") as folder, quiet():
        file = Path(folder) / "head.onnx"
        torch.onnx.export(
            _Head(pooling).eval(),
            (torch.ones(shape), torch.ones(PROBE_SHAPE, dtype=torch.int64)),
            str(file),
            input_names=["values", "mask"],
            output_names=["vectors"],
            dynamic_axes={"values": {0: "batch"} if pooling is None else axes, "mask": axes},
            opset_version=min(opset, OPSET),
            dynamo=False,
        )
        head = onnx.load(str(file))
    if opset > OPSET:
        head = version_converter.convert_version(head, opset)
    return compose.add_prefix(head, PREFIX)


def _append(model: onnx.ModelProto, output: _Output, *, pooling: Pooling, scratch: Path) -> None:
    graph = model.graph
    opset = next(o.version for o in model.opset_import if o.domain in {"", "ai.onnx"})
    head = _export_head(pooling if output.is_per_token else None, opset=opset, scratch=scratch)
    given = f"{PREFIX}given"
    _rename(graph, output.name, given)
    graph.node.append(helper.make_node("Cast", [given], [f"{PREFIX}values"], to=TensorProto.FLOAT))
    graph.node.append(helper.make_node("Identity", [INPUT_NAMES[1]], [f"{PREFIX}mask"]))
    graph.node.extend(head.graph.node)
    graph.initializer.extend(head.graph.initializer)
    _rename(graph, f"{PREFIX}vectors", OUTPUT_NAME)
    del graph.output[:], graph.value_info[:]
    graph.output.append(
        helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["batch", "dims"])
    )
    model.ir_version = max(model.ir_version, head.ir_version)


def _save(model: onnx.ModelProto, out_file: Path) -> None:
    """A graph with its weights inside, where protobuf's limit of 2 GB allows that."""
    weight_bytes = sum(len(w.raw_data) for w in model.graph.initializer)
    onnx.save(
        model,
        str(out_file),
        save_as_external_data=weight_bytes > MAX_INSIDE_BYTES,
        location=f"{out_file.name}.data",
    )


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
