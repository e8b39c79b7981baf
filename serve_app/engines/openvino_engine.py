"""OpenVINO on the CPU: runs the ONNX graph, or OpenVINO's own IR, in the variant's precision.

Between its integer products an INT8 graph runs in BF16 where the CPU can.

Batches are padded to a multiple of 16 tokens. OpenVINO's softmax computes whole SIMD registers and the
rest by different instructions, so a text's last bits depended on its batch-mates' lengths, and a flipped
rounding made 6e-4 (1 - cosine) of a bit in INT8. At multiples of 16, the floats in an AVX-512 register,
nothing moves at all (100 texts, BF16 and FP32 hints, `converters/to_int8.py`'s graph and NNCF's); at
multiples of 8 it still did. It costs a tenth more tokens, and saves most of the ~3 ms that OpenVINO
takes for each shape it has not met.

Each stream is a compiled model of its own, of one OpenVINO stream. One model of NUM_STREAMS=2 did as much with
two batches at once, in 28 MB and no time more instead of 38 MB and 0.5 s, but a query alone took 3.8 ms
instead of 3.1, back to back, and a text of 72 tokens 8.0 instead of 7.4: it wanders between the threads of the
streams. Two requests to one stream take turns. (INT8, medians of interleaved rounds on a noisy machine.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from queue import LifoQueue

import numpy as np
import openvino as ov

from serve_app.engines.base import IR_FILE, MODEL_FILES, Device, TokenIds, Vectors, pad
from serve_app.errors import ArtifactError
from serve_app.manifest import Variant

LENGTH_STEP = 16  # tokens


class OpenVinoEngine:
    """Compiled models with one inference request each; a batch takes the one that was used last."""

    def __init__(self, models: Sequence[ov.CompiledModel], *, pad_id: int, max_tokens: int) -> None:
        self._free: LifoQueue[ov.InferRequest] = LifoQueue()
        for model in models:
            self._free.put(model.create_infer_request())
        self._pad_id = pad_id
        self._max_tokens = max_tokens

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        steps = -(-max(map(len, texts)) // LENGTH_STEP)
        width = min(steps * LENGTH_STEP, self._max_tokens)  # the model has no more positions
        ids, mask = pad(texts, self._pad_id, width=width)
        request = self._free.get()
        try:
            outputs = request.infer({"input_ids": ids, "attention_mask": mask})
            return np.array(outputs[0], dtype=np.float32)
        finally:
            self._free.put(request)


def open_engine(
    folder: Path, variant: Variant, threads: int, device: Device, streams: int = 1
) -> OpenVinoEngine:
    """Compile the model's file; see `serve_app.engines.base.open_engine`. There is no GPU for it."""
    del device
    core = ov.Core()
    is_ir = (folder / IR_FILE).exists()
    model = core.read_model(folder / (IR_FILE if is_ir else MODEL_FILES["openvino"]))
    options = {
        "INFERENCE_PRECISION_HINT": _hint(core, variant),
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Pinning would put every replica of a host, and every stream, on the same first cores.
        "ENABLE_CPU_PINNING": False,
    }
    return OpenVinoEngine(
        [core.compile_model(model, "CPU", options) for _ in range(streams)],
        pad_id=variant.tokenizer.pad_id,
        max_tokens=variant.checkpoint.max_tokens,
    )


def _hint(core: ov.Core, variant: Variant) -> str:
    """The type for what is not an integer product."""
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if variant.precision == "bf16" and not has_bf16:
        raise ArtifactError(
            f"{variant.variant} needs a CPU with AVX512-BF16 or AMX; this one has neither"
        )
    return "bf16" if has_bf16 and variant.precision != "fp32" else "f32"
