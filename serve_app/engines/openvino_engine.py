"""OpenVINO on the CPU: runs the ONNX graph, or OpenVINO's own IR, in the variant's precision.

Between its integer products an INT8 graph runs in BF16 where the CPU can. Over 100 texts on one such
CPU, batch-mates moved the vectors of `converters/to_int8.py`'s graph by 2e-16 in BF16, 7e-5 in FP32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov

from serve_app.engines.base import IR_FILE, MODEL_FILES, Device, TokenIds, Vectors, pad
from serve_app.errors import ArtifactError
from serve_app.manifest import Variant


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
    """Compile the model's file; see `serve_app.engines.base.open_engine`. There is no GPU for it."""
    del device
    core = ov.Core()
    is_ir = (folder / IR_FILE).exists()
    # Pinning would put every replica of a host on the same first cores.
    model = core.compile_model(
        folder / (IR_FILE if is_ir else MODEL_FILES["openvino"]),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": _hint(core, variant),
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        },
    )
    return OpenVinoEngine(model, pad_id=variant.tokenizer.pad_id)


def _hint(core: ov.Core, variant: Variant) -> str:
    """The type for what is not an integer product."""
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if variant.precision == "bf16" and not has_bf16:
        raise ArtifactError(
            f"{variant.variant} needs a CPU with AVX512-BF16 or AMX; this one has neither"
        )
    return "bf16" if has_bf16 and variant.precision != "fp32" else "f32"
