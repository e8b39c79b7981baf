"""ONNX Runtime: float and integer graphs, pooling and normalisation inside, on CPU, CUDA or TensorRT.

TensorRT compiles a graph for one GPU and a range of shapes, which takes minutes. What it compiled is
kept in the artifact's folder under a hidden name, which no manifest lists: another GPU makes its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np
import onnxruntime as ort

from serve_app.engines.base import MODEL_FILES, Device, TokenIds, Vectors, pad
from serve_app.errors import ArtifactError
from serve_app.manifest import Variant

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
TENSORRT = "TensorrtExecutionProvider"
TENSORRT_CACHE = ".tensorrt"
INPUTS = ("input_ids", "attention_mask")
OPTIMAL_SHAPE = (8, 64)  # texts, tokens: what TensorRT's kernels are chosen for
MAX_TEXTS = 512  # full batches hold 1024 padded tokens at most, and a text has two or more

ProviderOptions = dict[str, str]


class OnnxEngine:
    """One ONNX Runtime session."""

    def __init__(self, session: ort.InferenceSession, *, pad_id: int) -> None:
        self._session = session
        self._pad_id = pad_id

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        ids, mask = pad(texts, self._pad_id)
        (vectors,) = self._session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))
        return np.asarray(vectors, dtype=np.float32)


def open_engine(folder: Path, variant: Variant, threads: int, device: Device) -> OnnxEngine:
    """Load `model.onnx`; see `serve_app.engines.base.open_engine`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Replicas share their host's cores: a thread that spins for work takes a neighbour's time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[str | tuple[str, ProviderOptions]] = [PROVIDERS[device]]
    if variant.runtime == "tensorrt":
        providers = [(TENSORRT, tensorrt_options(folder, variant)), PROVIDERS["cuda"]]
        with suppress(ImportError):
            import_module(
                "tensorrt"
            )  # the package loads its libraries, which are on no search path
    session = ort.InferenceSession(
        folder / MODEL_FILES["onnx"], sess_options=options, providers=providers
    )
    # A provider that cannot start is replaced by a slower one with a warning only.
    if variant.runtime == "tensorrt" and session.get_providers()[0] != TENSORRT:
        raise ArtifactError(f"{variant.variant} needs a GPU, onnxruntime-gpu and TensorRT")
    return OnnxEngine(session, pad_id=variant.tokenizer.pad_id)


def tensorrt_options(folder: Path, variant: Variant) -> ProviderOptions:
    """What TensorRT may expect of shapes, and where it keeps what it compiled."""
    max_tokens = variant.checkpoint.max_tokens
    texts, tokens = OPTIMAL_SHAPE
    shapes = {
        "min": (1, 1),
        "opt": (texts, min(tokens, max_tokens)),
        "max": (MAX_TEXTS, max_tokens),
    }
    cache = folder / TENSORRT_CACHE
    keeps = os.access(cache if cache.exists() else folder, os.W_OK)
    return {
        "trt_fp16_enable": "1",
        "trt_engine_cache_enable": str(int(keeps)),
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": str(int(keeps)),
        "trt_timing_cache_path": str(cache),
        **{
            f"trt_profile_{which}_shapes": ",".join(f"{name}:{n}x{m}" for name in INPUTS)
            for which, (n, m) in shapes.items()
        },
    }
