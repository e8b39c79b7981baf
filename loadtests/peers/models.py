"""The model folder that peers load: the checkpoint as the converters use it, and with ONNX files beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.checkpoint import Checkpoint

WEIGHTS = "*.safetensors"
FP32_FILE, INT8_FILE = "model.onnx", "model_quantized.onnx"  # names that optimum looks for
OUTPUT = "last_hidden_state"
OPSET = 18
DONE = "whole"


@dataclass(frozen=True, slots=True)
class Models:
    """Folders by how the model is to run; the ONNX ones are made when asked for, and kept."""

    checkpoint: Checkpoint
    work: Path

    @property
    def torch(self) -> Path:
        """As it was published."""
        folder = self.checkpoint.folder
        return folder if (folder / "modules.json").exists() else folder.parent

    def onnx_fp32(self) -> Path:
        """With an ONNX file of the transformer, which pools nothing."""
        return self._made(
            "onnx-fp32", lambda folder: export_hidden(self.checkpoint, folder / FP32_FILE)
        )

    def onnx_int8(self) -> Path:
        """With the same in dynamic INT8, per channel, as users quantise it."""

        def quantise(folder: Path) -> None:
            from converters.to_int8_dynamic import quantize_dynamic

            quantize_dynamic(self.onnx_fp32() / FP32_FILE, folder / INT8_FILE)

        return self._made("onnx-int8", quantise)

    def _made(self, name: str, put: Callable[[Path], None]) -> Path:
        folder = (self.work / "models" / name).resolve()
        if (folder / DONE).exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.torch, folder, ignore=shutil.ignore_patterns(WEIGHTS))
        put(folder)
        (folder / DONE).touch()
        return folder


def export_hidden(checkpoint: Checkpoint, file: Path) -> None:
    """Write the transformer alone: token ids, mask and types in, hidden states out."""
    import torch

    from converters.to_onnx import quiet

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = checkpoint.load_model()

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> Any:
            out = self.model(input_ids=ids, attention_mask=mask, token_type_ids=types)
            return out.last_hidden_state

    names = ("input_ids", "attention_mask", "token_type_ids")
    one = torch.ones((2, 8), dtype=torch.int64)
    axes = {name: {0: "batch", 1: "tokens"} for name in (*names, OUTPUT)}
    with torch.inference_mode(), quiet():
        torch.onnx.export(
            Hidden().eval(),
            (one, one, one * 0),
            str(file),
            input_names=list(names),
            output_names=[OUTPUT],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
