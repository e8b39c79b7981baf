"""TensorRT through ONNX Runtime: what must be there before `onnx-tensorrt` can be built.

The artifact is the FP16 ONNX graph. TensorRT compiles it for the one GPU it finds, at first use, and
`serve_app.engines.onnx_engine` keeps what it compiled beside the graph.
"""

from __future__ import annotations

import ctypes
import importlib.util

import onnxruntime as ort

PROVIDER = "TensorrtExecutionProvider"
DRIVER = "libcuda.so.1"
LIBRARIES = ("libnvinfer.so.10", "libnvinfer.so.11")


def missing() -> str | None:
    """Everything that stands in the way here, in one line, or None."""
    lacks = []
    if not _loads(DRIVER):
        lacks.append(f"an NVIDIA GPU with its driver ({DRIVER})")
    if PROVIDER not in ort.get_available_providers():
        lacks.append("the package onnxruntime-gpu in place of onnxruntime")
    if not _has_tensorrt():
        lacks.append("TensorRT (`pip install tensorrt`)")
    return f"needs {' and '.join(lacks)}" if lacks else None


def _has_tensorrt() -> bool:
    return importlib.util.find_spec("tensorrt") is not None or any(map(_loads, LIBRARIES))


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
