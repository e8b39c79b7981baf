"""One recipe a variant: how its files come to be, and where it may be built."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converters.checkpoint import Checkpoint
from converters.source import Source
from serve_app.engines.base import MODEL_FILES
from serve_app.engines.cpu import this_cpu
from serve_app.errors import ConversionError
from serve_app.manifest import Runtime, Variant

if TYPE_CHECKING:
    from converters.recover import Recovery

MIXED = "torch-fp16-mixed"
RECOVERED = ("onnx-int8", "openvino-int8")  # what `--recover` changes: both hold the same graph


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
    unavailable: Callable[[], str | None] = lambda: None
    gpu: bool = False  # measured on a GPU where this machine has one that its runtime can use

    def variant(self, name: str, checkpoint: Checkpoint, *, notes: Notes | None = None) -> Variant:
        """What an engine must know of the artifact that this recipe makes."""
        return Variant(
            variant=name,
            runtime=self.runtime,
            precision=self.precision,
            checkpoint=checkpoint.facts,
            tokenizer=checkpoint.tokenizer,
            kept_fp32=notes.kept_fp32 if notes else (),
            autocast=self.autocast,
        )


def _copy_fp32(source: Source, folder: Path) -> None:
    shutil.copyfile(source.onnx_fp32, folder / MODEL_FILES["onnx"])


def _copy_fp16(source: Source, folder: Path) -> None:
    shutil.copyfile(source.onnx_fp16, folder / MODEL_FILES["onnx"])


def _copy_int8(source: Source, folder: Path) -> Notes:
    shutil.copyfile(source.onnx_int8.file, folder / MODEL_FILES["onnx"])
    return Notes(recovery=source.onnx_int8.recovery)


def _onnx_int8_dynamic(source: Source, folder: Path) -> None:
    from converters.to_int8_dynamic import quantize_dynamic

    quantize_dynamic(source.onnx_fp32, folder / MODEL_FILES["onnx"])


def _openvino_int8_dynamic(source: Source, folder: Path) -> None:
    from converters.to_openvino_int8_dynamic import quantize_weights

    batches = source.batches(source.calibration)
    file = folder / MODEL_FILES["openvino"]
    quantize_weights(source.onnx_fp32, file, batches=batches, ranges=source.ranges)


def _nncf(source: Source, folder: Path) -> None:
    from converters.to_openvino_int8 import quantize_with_nncf

    quantize_with_nncf(source.onnx_fp32, folder, calibration=source.calibration)


def _torch_fp16(source: Source, folder: Path) -> Notes:
    from converters.to_fp16 import write_half

    batches = source.batches(source.calibration)
    return Notes(kept_fp32=write_half(source.checkpoint, folder, batches=batches))


def _torch_bf16(source: Source, folder: Path) -> None:
    import torch

    from converters.to_torch import write_weights

    write_weights(source.checkpoint, folder, dtype=torch.bfloat16)


def _torch_fp32(source: Source, folder: Path) -> None:
    import torch

    from converters.to_torch import write_weights

    write_weights(source.checkpoint, folder, dtype=torch.float32)


def _litert(source: Source, folder: Path) -> None:
    from converters.to_litert import write_int8
    from serve_app.engines.pooling import SentenceEmbedder

    checkpoint = source.checkpoint
    embedder = SentenceEmbedder(
        checkpoint.load_model(), pooling=checkpoint.facts.pooling, head=checkpoint.load_head()
    )
    file = folder / MODEL_FILES["litert"]
    write_int8(embedder, file, max_tokens=checkpoint.facts.max_tokens)


def _no_litert() -> str | None:
    from converters.to_litert import missing

    return missing()


def _no_nncf() -> str | None:
    from converters.to_openvino_int8 import missing

    return _no_vnni() or missing()


def _no_tensorrt() -> str | None:
    from converters.to_tensorrt import missing

    return missing()


def _no_bf16() -> str | None:
    if this_cpu().is_known_x86:  # to import OpenVINO is half of what `make serve` takes to look
        return this_cpu().lacks("openvino", "bf16")
    import openvino as ov

    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    return "this CPU has no BF16"


def _no_vnni() -> str | None:
    return this_cpu().lacks("openvino", "int8")


RECIPES = {
    "onnx-fp32": Recipe(runtime="onnx", precision="fp32", convert=_copy_fp32),
    "openvino-bf16": Recipe(
        runtime="openvino", precision="bf16", convert=_copy_fp32, unavailable=_no_bf16
    ),
    "onnx-int8": Recipe(runtime="onnx", precision="int8", convert=_copy_int8),
    "openvino-int8": Recipe(
        runtime="openvino", precision="int8", convert=_copy_int8, unavailable=_no_vnni
    ),
    "openvino-int8-dynamic": Recipe(
        runtime="openvino", precision="int8-dynamic", convert=_openvino_int8_dynamic
    ),
    "torch-fp16": Recipe(runtime="torch", precision="fp16", convert=_torch_fp16, gpu=True),
    MIXED: Recipe(runtime="torch", precision="fp16", convert=_torch_fp32, autocast=True, gpu=True),
    "torch-bf16": Recipe(runtime="torch", precision="bf16", convert=_torch_bf16),
    "onnx-fp16": Recipe(runtime="onnx", precision="fp16", convert=_copy_fp16, gpu=True),
    "openvino-int8-nncf": Recipe(
        runtime="openvino", precision="int8", convert=_nncf, unavailable=_no_nncf
    ),
    "onnx-int8-dynamic": Recipe(
        runtime="onnx", precision="int8-dynamic", convert=_onnx_int8_dynamic
    ),
    "torch-int8-dynamic": Recipe(runtime="torch", precision="int8-dynamic", convert=_torch_fp32),
    "litert-int8": Recipe(
        runtime="litert", precision="int8", convert=_litert, unavailable=_no_litert
    ),
    "onnx-tensorrt": Recipe(
        runtime="tensorrt",
        precision="fp16",
        convert=_copy_fp16,
        unavailable=_no_tensorrt,
        gpu=True,
    ),
}
# Worth a newcomer's first minutes: what has made the ladder somewhere. `all` builds the others too.
DEFAULT_VARIANTS = (
    "onnx-fp32",
    "openvino-bf16",
    "openvino-int8-dynamic",
    "onnx-int8",
    "openvino-int8",
    "torch-fp16",
)


def choose(
    names: Sequence[str], *, otherwise: Sequence[str] = tuple(RECIPES)
) -> tuple[list[str], dict[str, str]]:
    """The variants to build, and why others cannot be built here.

    Args:
        names: variants by name; each must exist and be buildable.
        otherwise: without names, those of these that can be built; by default of all.

    Raises:
        ConversionError: a name that does not exist, or was asked for and cannot be built here.
    """
    for name in names:
        if name not in RECIPES:
            raise ConversionError(f"no variant {name!r}; there are {', '.join(RECIPES)}")
    chosen, skipped = [], {}
    for name in dict.fromkeys(names or otherwise):
        reason = RECIPES[name].unavailable()
        if reason is None:
            chosen.append(name)
        elif names:
            raise ConversionError(f"{name} cannot be built here: {reason}")
        else:
            skipped[name] = reason
    return chosen, skipped
