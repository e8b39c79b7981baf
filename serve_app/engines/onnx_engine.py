"""ONNX Runtime: FP32 and static INT8 graphs, pooling and normalisation inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from serve_app.engines.base import MODEL_FILES, Device, TokenIds, Vectors, pad
from serve_app.manifest import Variant

PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider"]}


class OnnxEngine:
    """One ONNX Runtime session."""

    def __init__(self, session: ort.InferenceSession, *, pad_id: int) -> None:
        self._session = session
        self._pad_id = pad_id

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        ids, mask = pad(texts, self._pad_id)
        (vectors,) = self._session.run(None, {"input_ids": ids, "attention_mask": mask})
        return np.asarray(vectors, dtype=np.float32)


def open_engine(folder: Path, variant: Variant, threads: int, device: Device) -> OnnxEngine:
    """Load `model.onnx`; see `serve_app.engines.base.open_engine`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Replicas share their host's cores: a thread that spins for work takes a neighbour's time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(
        folder / MODEL_FILES["onnx"], sess_options=options, providers=PROVIDERS[device]
    )
    return OnnxEngine(session, pad_id=variant.tokenizer.pad_id)
