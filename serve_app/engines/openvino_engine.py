"""OpenVINO on the CPU: runs the ONNX graph in the precision that the variant names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov

from serve_app.engines.base import MODEL_FILES, Device, TokenIds, Vectors, pad
from serve_app.errors import ArtifactError
from serve_app.manifest import Variant

PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoEngine:
    """One compiled model with one inference request."""

    def __init__(self, model: ov.CompiledModel, *, pad_id: int) -> None:
        self._request = model.create_infer_request()
        self._pad_id = pad_id

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        ids, mask = pad(texts, self._pad_id)
        outputs = self._request.infer({"input_ids": ids, "attention_mask": mask})
        return np.array(outputs[0], dtype=np.float32)


def open_engine(folder: Path, variant: Variant, threads: int, device: Device) -> OpenVinoEngine:
    """Compile `model.onnx`; see `serve_app.engines.base.open_engine`. There is no GPU for it."""
    del device
    core = ov.Core()
    hint = PRECISION_HINTS[variant.precision]
    if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ArtifactError(
            f"{variant.variant} needs a CPU with AVX512-BF16 or AMX; this one has neither"
        )
    # Pinning would put every replica of a host on the same first cores.
    model = core.compile_model(
        folder / MODEL_FILES["openvino"],
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        },
    )
    return OpenVinoEngine(model, pad_id=variant.tokenizer.pad_id)
