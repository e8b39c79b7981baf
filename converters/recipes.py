"""One recipe a variant: how its files come to be, and what it must keep of the checkpoint's vectors."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from converters.checkpoint import Checkpoint
from serve_app.engines.base import MODEL_FILES, TokenIds, pad
from serve_app.errors import ConversionError
from serve_app.manifest import Fidelity, Runtime
from serve_app.policy.batching import next_batch

if TYPE_CHECKING:
    from converters.recover import Recovery
    from converters.to_int8 import TokenBatch

CALIBRATION_BATCH_TOKENS = 2048
MAX_EXPORT_ERROR = 1e-4  # of a unit vector's component; rounding gives 1e-7
MAX_DRIFT = 1e-4
INT8 = "onnx-int8"
MIXED = "torch-fp16-mixed"
FAR = -1.0  # the cosine that `fidelity.cosines` gives to vectors that are not finite
MIN_P1 = {"fp32": 0.99999, "fp16": 0.999, "bf16": 0.999, "int8": 0.98}


@dataclass(frozen=True)
class Source:
    """What recipes start from; the FP32 graph is exported once for all that need it."""

    checkpoint: Checkpoint
    calibration: Sequence[TokenIds]
    scratch: Path
    probe: Sequence[TokenIds] = ()
    recover_minutes: float | None = None  # None: INT8 without recovery

    @cached_property
    def onnx_fp32(self) -> Path:
        from converters.to_onnx import export, parity_error

        file = self.scratch / MODEL_FILES["onnx"]
        model, pooling = self.checkpoint.load_model(), self.checkpoint.facts.pooling
        export(model, file, pooling=pooling)
        error = parity_error(model, file, pooling=pooling)
        if error > MAX_EXPORT_ERROR:
            raise ConversionError(
                f"the ONNX export differs from PyTorch by {error:.1e} a component"
            )
        return file

    def batches(self, texts: Sequence[TokenIds]) -> list[TokenBatch]:
        """Texts as padded batches of like lengths, (ids, mask), int64 [batch, tokens]."""
        waiting, batches = list(texts), []
        while waiting:
            positions = next_batch([len(ids) for ids in waiting], CALIBRATION_BATCH_TOKENS)
            batches.append(pad([waiting[p] for p in positions], self.checkpoint.tokenizer.pad_id))
            taken = set(positions)
            waiting = [ids for i, ids in enumerate(waiting) if i not in taken]
        return batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What a conversion did that the manifest must tell."""

    kept_fp32: tuple[str, ...] = ()
    recovery: Recovery | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to build one variant into a folder."""

    runtime: Runtime
    precision: str
    convert: Callable[[Source, Path], Notes | None]
    autocast: bool = False
    on_request: bool = False  # not among `all`
    unavailable: Callable[[], str | None] = lambda: None


def _copy_fp32(source: Source, folder: Path) -> None:
    shutil.copyfile(source.onnx_fp32, folder / MODEL_FILES["onnx"])


def _half(source: Source, folder: Path) -> Notes:
    from converters.to_fp16 import write_half

    batches = source.batches(source.probe)
    return Notes(kept_fp32=write_half(source.checkpoint, folder, batches=batches))


def _mixed(source: Source, folder: Path) -> None:
    from converters.to_fp16 import write_mixed

    write_mixed(source.checkpoint, folder)


def _int8(source: Source, folder: Path) -> Notes | None:
    from converters.to_int8 import quantize_static

    batches, file = source.batches(source.calibration), folder / MODEL_FILES["onnx"]
    quantize_static(source.onnx_fp32, file, batches=batches)
    if source.recover_minutes is None:
        return None
    from converters.recover import recover

    recovery = recover(
        source.checkpoint,
        file,
        fp32_file=source.onnx_fp32,
        batches=batches,
        minutes=source.recover_minutes,
    )
    return Notes(recovery=recovery)


def _no_bf16() -> str | None:
    import openvino as ov

    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    return "this CPU has neither AVX512-BF16 nor AMX"


RECIPES = {
    "onnx-fp32": Recipe(runtime="onnx", precision="fp32", convert=_copy_fp32),
    "openvino-bf16": Recipe(
        runtime="openvino", precision="bf16", convert=_copy_fp32, unavailable=_no_bf16
    ),
    INT8: Recipe(runtime="onnx", precision="int8", convert=_int8),
    "torch-fp16": Recipe(runtime="torch", precision="fp16", convert=_half),
    MIXED: Recipe(
        runtime="torch", precision="fp16", convert=_mixed, autocast=True, on_request=True
    ),
}


def choose(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The variants to build, and why others cannot be built here.

    Args:
        names: variants by name; none for all.

    Raises:
        ConversionError: a name that does not exist, or was asked for and cannot be built here.
    """
    for name in names:
        if name not in RECIPES:
            raise ConversionError(f"no variant {name!r}; there are {', '.join(RECIPES)}")
    chosen, skipped = [], {}
    for name in names or [name for name, recipe in RECIPES.items() if not recipe.on_request]:
        reason = RECIPES[name].unavailable()
        if reason is None:
            chosen.append(name)
        elif names:
            raise ConversionError(f"{name} cannot be built: {reason}")
        else:
            skipped[name] = reason
    return chosen, skipped


def gate(precision: str, fidelity: Fidelity) -> str | None:
    """Why a variant must stay off the ladder, or None."""
    floor = MIN_P1[precision]
    if not fidelity.min > FAR:
        return "some vectors are not finite"
    if not fidelity.p1 >= floor:
        return f"fidelity {fidelity.p1:.4f} misses the {precision} gate of {floor}"
    return None
