"""Bring your own: an existing ONNX file becomes a variant of a checkpoint, measured like ours.

What the graph computes stays as it came (`onnx_contract.py` only changes its ends), and its fidelity
is measured, whatever its name promises.
"""

from __future__ import annotations

import re
from pathlib import Path

import onnx
from onnx import TensorProto

from converters.onnx_contract import adopt, first_line
from converters.recipes import RECIPES, Recipe
from converters.source import Source
from serve_app.engines.base import MODEL_FILES
from serve_app.errors import ConversionError, shown

VARIANT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
INTEGER_TYPES = {TensorProto.INT8, TensorProto.UINT8}


def adoption(file: Path, *, variant: str | None = None) -> dict[str, Recipe]:
    """The recipe of an existing file, by the name of its variant, to be built like any other.

    Raises:
        ConversionError: the file is no ONNX, or the name is taken or cannot name a folder.
    """
    model = read_onnx(file)
    precision = precision_of(model)
    name = variant or f"onnx-imported-{precision}"
    if name in RECIPES:
        raise ConversionError(f"--variant-name {name}: `converters build` makes that one")
    if not VARIANT_NAME.fullmatch(name):
        raise ConversionError(
            f"--variant-name {shown(name)}: use lower-case letters, digits, . _ -"
        )

    def convert(source: Source, folder: Path) -> None:
        adopt(model, folder / MODEL_FILES["onnx"], facts=source.checkpoint.facts)

    return {name: Recipe(runtime="onnx", precision=precision, convert=convert)}


def read_onnx(file: Path) -> onnx.ModelProto:
    """Load a file with its external data.

    Raises:
        ConversionError: it cannot be read, is no ONNX, or lacks its data file.
    """
    if not file.is_file():
        raise ConversionError(f"{file}: no such file")
    try:
        model = onnx.load(str(file))
    except (
        Exception
    ) as error:  # protobuf's, the checker's and the system's derive from nothing common
        raise ConversionError(f"{file}: not an ONNX model ({first_line(error)})") from error
    if not model.graph.node:
        raise ConversionError(f"{file}: not an ONNX model (it has no nodes)")
    return model


def precision_of(model: onnx.ModelProto) -> str:
    """What a graph's nodes and weights say of its precision, as variants name it."""
    ops = {node.op_type for node in model.graph.node}
    bits = {a.i for n in model.graph.node for a in n.attribute if a.name == "bits"}
    if "MatMulNBits" in ops and bits != {8}:
        raise ConversionError(f"weights of {min(bits)} bits are not supported: use 8, 16 or 32")
    if "DynamicQuantizeLinear" in ops or "DynamicQuantizeMatMul" in ops:
        return "int8-dynamic"
    kinds = {w.data_type for w in model.graph.initializer if len(w.dims) > 1}
    if kinds & INTEGER_TYPES:
        return "int8"
    return "fp16" if TensorProto.FLOAT16 in kinds else "fp32"
