"""OpenVINO on the CPU: runs the ONNX graph, or OpenVINO's own IR, in the variant's precision.

Between its integer products an INT8 graph runs in BF16 where the CPU can.

Dynamic INT8 (`converters/to_openvino_int8_dynamic.py`) runs in FP32 between products, and each product
rounds its activation to INT8 as it comes, with a scale for each 64 channels of one token.

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

from serve_app.engines.base import (
    DYNAMIC_GROUP,
    IR_FILE,
    MODEL_FILES,
    Device,
    TokenIds,
    Vectors,
    pad,
)
from serve_app.errors import ArtifactError
from serve_app.manifest import Variant

LENGTH_STEP = 16  # tokens
DYNAMIC = "int8-dynamic"


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
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    options = compile_options(variant, threads, has_bf16="BF16" in capabilities)
    return OpenVinoEngine(
        [core.compile_model(model, "CPU", options) for _ in range(streams)],
        pad_id=variant.tokenizer.pad_id,
        max_tokens=variant.checkpoint.max_tokens,
    )


def compile_options(variant: Variant, threads: int, *, has_bf16: bool) -> dict[str, str | int]:
    """What OpenVINO is told, on a CPU with or without BF16.

    Raises:
        ArtifactError: the variant needs BF16.
    """
    if variant.precision == "bf16" and not has_bf16:
        raise ArtifactError(
            f"{variant.variant} needs a CPU with AVX512-BF16 or AMX; this one has neither"
        )
    is_dynamic = variant.precision == DYNAMIC
    in_bf16 = has_bf16 and variant.precision != "fp32" and not is_dynamic
    return {
        "INFERENCE_PRECISION_HINT": "bf16" if in_bf16 else "f32",  # of what is no integer product
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Pinning would put every replica of a host, and every stream, on the same first cores.
        "ENABLE_CPU_PINNING": False,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": DYNAMIC_GROUP if is_dynamic else 0,
    }
