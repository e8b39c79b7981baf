"""The engine contract, and how to open the engine of an artifact.

An engine is a plain object used by as many threads at once as it was opened for. Runtimes are imported
only when opened, so a replica of an ONNX variant never loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from serve_app.engines.cpu import this_cpu
from serve_app.errors import ArtifactError
from serve_app.manifest import Variant

TokenIds = npt.NDArray[np.int32]
Vectors = npt.NDArray[np.float32]
Device = Literal["cpu", "cuda"]

# Input channels that share a scale where OpenVINO rounds activations as they come, in weights and activations
# alike; with 32 it takes a tenth longer and loses a third less, with 128 the opposite.
DYNAMIC_GROUP = 64
MODEL_FILES = {
    "onnx": "model.onnx",
    "openvino": "model.onnx",
    "tensorrt": "model.onnx",
    "torch": "model.safetensors",
    "litert": "model.tflite",
}
ONE_STREAM = {
    "tensorrt",
    "litert",
}  # runtimes whose engines take one batch at a time; and all do on a GPU
IR_FILE = "model.xml"  # OpenVINO's own format, beside model.bin; an artifact has this or ONNX
_MODULES = {
    "onnx": "onnx",
    "openvino": "openvino",
    "tensorrt": "onnx",
    "torch": "torch",
    "torch int8-dynamic": "torch_int8",  # before its runtime's own
    "litert": "litert",
    "fake": "fake",
}


class Engine(Protocol):
    """Runs one artifact."""

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        """Turn texts into vectors. Up to `streams` threads may call it at once, as many as it was opened for.

        Args:
            texts: token ids with special tokens, each of length 1 to the checkpoint's max_tokens.
                They run as one padded batch.

        Returns:
            float32 [len(texts), dims], in the order given, each of unit length.
        """
        ...


OpenEngine = Callable[[Path, Variant, int, Device, int], Engine]


def open_engine(
    folder: Path,
    variant: Variant,
    *,
    threads: int = 1,
    device: Device = "cpu",
    streams: int = 1,
) -> Engine:
    """Load an artifact's files into a ready engine.

    Args:
        folder: the artifact, already verified.
        variant: what it holds; a manifest says it.
        threads: compute threads on the CPU, of each batch.
        device: "cpu", or "cuda" for the engines that can.
        streams: batches that it runs side by side, each called from a thread of its own; 1 where it can
            do no more.

    Raises:
        ArtifactError: the runtime is not installed, or cannot load the file; or this CPU cannot run the
            variant, or not right.
    """
    reason = this_cpu().lacks(variant.runtime, variant.precision) if device == "cpu" else None
    if reason is not None:
        raise ArtifactError(f"{variant.variant} {reason}")
    special = f"{variant.runtime} {variant.precision}"
    name = _MODULES.get(special, _MODULES[variant.runtime])
    try:
        module = import_module(f"serve_app.engines.{name}_engine")
    except ImportError as error:
        raise ArtifactError(
            f"{variant.variant} needs the package {error.name!r}, which is not installed here"
        ) from error
    try:
        engine = cast("OpenEngine", module.open_engine)(folder, variant, threads, device, streams)
        if streams > 1:
            # What a runtime's bindings set up with their first batch is no work for two threads: two that met
            # in OpenVINO's, over numpy, waited for each other for ever, one start in six.
            engine.embed([np.full(1, variant.tokenizer.pad_id, dtype=np.int32)])
    except ArtifactError:
        raise
    except Exception as error:  # ONNX Runtime's derive from nothing narrower
        first_line = str(error).strip().splitlines()[0]
        raise ArtifactError(f"{folder}: {variant.runtime} cannot load it: {first_line}") from error
    return _within_memory(engine) if device == "cuda" else engine


def _within_memory(engine: Engine) -> Engine:
    from serve_app.engines.memory import HalvingEngine, release_cached

    return HalvingEngine(engine, release=release_cached)


def pad(
    texts: Sequence[TokenIds], pad_id: int, *, width: int | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Token ids and attention mask, int64 [texts, width or longest], padded on the right."""
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    real = np.arange(width or lengths.max()) < lengths[:, None]
    ids = np.full(real.shape, pad_id, dtype=np.int64)
    ids[real] = np.concatenate(texts)
    return ids, real.astype(np.int64)
