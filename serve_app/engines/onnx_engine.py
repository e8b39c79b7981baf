"""ONNX Runtime: float and integer graphs, pooling and normalisation inside, on CPU, CUDA or TensorRT.

Integer products are exact on every CPU. On one without VNNI, ONNX Runtime's default kernels overflow: all-MiniLM-L6-v2
in static INT8 came out at p1 .9904 instead of .9973 on an AMD EPYC with AVX2 alone, and a tenth faster.

On a GPU, inputs and vectors are bound to its memory: one copy there, one back, none between.

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
from serve_app.engines.cpu import this_cpu
from serve_app.errors import ArtifactError
from serve_app.manifest import Variant

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
TENSORRT_CACHE = ".tensorrt"
EXACT = "session.x64quantprecision"
INPUTS = ("input_ids", "attention_mask")
OPTIMAL_SHAPE = (8, 64)  # texts, tokens: what TensorRT's kernels are chosen for
MAX_TEXTS = 512  # of a TensorRT batch: beyond, it would compile anew; larger ones are cut

ProviderOptions = dict[str, str]
Providers = list[tuple[str, ProviderOptions]]


class OnnxEngine:
    """One ONNX Runtime session, which any number of threads may run at once."""

    def __init__(self, session: ort.InferenceSession, *, pad_id: int) -> None:
        self._session = session
        self._pad_id = pad_id

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        ids, mask = pad(texts, self._pad_id)
        (vectors,) = self._session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))
        return np.asarray(vectors, dtype=np.float32)


class BoundOnnxEngine:
    """One session whose inputs and output lie in the memory of the device that it runs on. One stream."""

    def __init__(
        self,
        session: ort.InferenceSession,
        *,
        pad_id: int,
        device: Device,
        max_texts: int | None = None,
    ) -> None:
        """Wrap a session.

        Args:
            session: ready.
            pad_id: of the tokenizer.
            device: that the session runs on.
            max_texts: of one batch; larger ones are cut.
        """
        self._session = session
        self._pad_id = pad_id
        self._device = device
        self._max_texts = max_texts
        self._output = session.get_outputs()[0].name

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        size = self._max_texts or len(texts)
        found = [self._run(texts[at : at + size]) for at in range(0, len(texts), size)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _run(self, texts: Sequence[TokenIds]) -> Vectors:
        binding = self._session.io_binding()
        for name, numbers in zip(INPUTS, pad(texts, self._pad_id), strict=True):
            there = ort.OrtValue.ortvalue_from_numpy(numbers, self._device, 0)
            binding.bind_ortvalue_input(name, there)
        binding.bind_output(self._output, self._device, 0)
        self._session.run_with_iobinding(binding)
        return np.asarray(binding.copy_outputs_to_cpu()[0], dtype=np.float32)


def open_engine(
    folder: Path, variant: Variant, threads: int, device: Device, streams: int = 1
) -> OnnxEngine | BoundOnnxEngine:
    """Load `model.onnx`; see `serve_app.engines.base.open_engine`."""
    del streams  # a session's runs share weights only
    pad_id = variant.tokenizer.pad_id
    if device == "cpu" and variant.runtime != "tensorrt":
        return OnnxEngine(_session(folder, threads, [("CPUExecutionProvider", {})]), pad_id=pad_id)
    _load_libraries()
    max_texts = None
    providers: Providers = [(CUDA, {"arena_extend_strategy": "kSameAsRequested"})]
    if variant.runtime == "tensorrt":
        max_texts = MAX_TEXTS
        providers.insert(0, (TENSORRT, tensorrt_options(folder, variant)))
    session = _session(folder, threads, providers)
    # A provider that cannot start is replaced by a slower one with a warning only.
    if session.get_providers()[0] != providers[0][0]:
        more = " and TensorRT" if variant.runtime == "tensorrt" else ""
        raise ArtifactError(f"{variant.variant} needs a GPU, onnxruntime-gpu{more}")
    return BoundOnnxEngine(session, pad_id=pad_id, device="cuda", max_texts=max_texts)


def has_cuda() -> bool:
    """Whether this ONNX Runtime was built for GPUs; that one is there is another question."""
    return CUDA in ort.get_available_providers()


def _load_libraries() -> None:
    """Packages that bring CUDA, cuDNN and TensorRT keep them where no search path leads."""
    if hasattr(ort, "preload_dlls") and has_cuda():
        ort.preload_dlls()
    with suppress(ImportError):
        import_module("tensorrt")


def session_options(threads: int) -> ort.SessionOptions:
    """How a session is opened to serve, and to calibrate what will be served."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Replicas share their host's cores: a thread that spins for work takes a neighbour's time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not this_cpu().has_vnni:
        # The faster kernels add two products of UINT8 and INT8 in 16 bits there, which overflow. Where VNNI is, this
        # would cost its kernels, which are exact; other processors than x86 take no notice.
        options.add_session_config_entry(EXACT, "1")
    return options


def _session(folder: Path, threads: int, providers: Providers) -> ort.InferenceSession:
    return ort.InferenceSession(
        folder / MODEL_FILES["onnx"], sess_options=session_options(threads), providers=providers
    )


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
