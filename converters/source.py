"""What recipes start from: a checkpoint, calibration texts, and the graphs that several of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converters.checkpoint import Checkpoint
from converters.once import Once
from serve_app.engines.base import MODEL_FILES, TokenIds, pad
from serve_app.errors import ConversionError
from serve_app.policy.batching import next_batch

if TYPE_CHECKING:
    from converters.calibration import TokenBatch
    from converters.recover import Recovery
    from converters.smoothing import Ranges

CALIBRATION_BATCH_TOKENS = 2048
MAX_EXPORT_ERROR = 1e-4  # of a unit vector's component; rounding gives 1e-7


@dataclass(frozen=True, slots=True)
class Int8Graph:
    """The static INT8 graph, and how it was recovered, if it was."""

    file: Path
    recovery: Recovery | None


@dataclass(frozen=True)
class Source:
    """What recipes start from; each graph is made once for all that need it."""

    checkpoint: Checkpoint
    calibration: Sequence[TokenIds]
    scratch: Path
    recover_minutes: float | None = None

    @Once
    def onnx_fp32(self) -> Path:
        from converters.to_onnx import export, parity_error

        file = self.scratch / MODEL_FILES["onnx"]
        model, pooling = self.checkpoint.load_model(), self.checkpoint.facts.pooling
        head = self.checkpoint.load_head()
        export(model, file, pooling=pooling, head=head)
        error = parity_error(model, file, pooling=pooling, head=head)
        if error > MAX_EXPORT_ERROR:
            raise ConversionError(
                f"the ONNX export differs from PyTorch by {error:.1e} a component"
            )
        return file

    @Once
    def onnx_fp16(self) -> Path:
        from converters.to_onnx_fp16 import to_fp16

        file = self.scratch / "fp16.onnx"
        to_fp16(self.onnx_fp32, file)
        return file

    @Once
    def ranges(self) -> Ranges:
        """What the linear layers of the FP32 graph read."""
        from converters.smoothing import observe

        return observe(self.onnx_fp32, batches=self.batches(self.calibration))

    @Once
    def onnx_int8(self) -> Int8Graph:
        from converters.to_int8 import quantize_static

        file = self.scratch / "int8" / MODEL_FILES["onnx"]
        file.parent.mkdir()
        batches = self.batches(self.calibration)
        quantize_static(self.onnx_fp32, file, batches=batches, ranges=self.ranges)
        if self.recover_minutes is None:
            return Int8Graph(file, None)
        from converters.recover import recover

        recovery = recover(
            self.checkpoint,
            file,
            fp32_file=self.onnx_fp32,
            batches=batches,
            minutes=self.recover_minutes,
        )
        return Int8Graph(file, recovery)

    def batches(self, texts: Sequence[TokenIds]) -> list[TokenBatch]:
        """Texts as padded batches of like lengths, (ids, mask), int64 [batch, tokens]."""
        waiting, batches = list(texts), []
        while waiting:
            positions = next_batch([len(ids) for ids in waiting], CALIBRATION_BATCH_TOKENS)
            batches.append(pad([waiting[p] for p in positions], self.checkpoint.tokenizer.pad_id))
            taken = set(positions)
            waiting = [ids for i, ids in enumerate(waiting) if i not in taken]
        return batches
