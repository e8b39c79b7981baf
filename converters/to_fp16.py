"""FP16: the checkpoint's own weights at half the size, run by PyTorch on GPUs."""

from __future__ import annotations

from pathlib import Path

import torch

from converters.checkpoint import Checkpoint
from serve_app.errors import ConversionError

FP16_MAX = torch.finfo(torch.float16).max


def write_half(checkpoint: Checkpoint, folder: Path) -> None:
    """Write weights and configuration in FP16 into an artifact folder.

    Raises:
        ConversionError: a weight is too large for FP16, or the model is code of the checkpoint's.
    """
    if checkpoint.trust_remote_code and checkpoint.brings_code:
        raise ConversionError(
            "torch-fp16 would run the checkpoint's own code in the server; build the variants whose "
            "graph holds it: --variants onnx-fp32,onnx-int8"
        )
    model = checkpoint.load_model()
    for name, weight in model.named_parameters():
        largest = weight.detach().abs().max().item()
        if largest > FP16_MAX:
            raise ConversionError(
                f"torch-fp16: {name} reaches {largest:.3g}, FP16 ends at {FP16_MAX}"
            )
    model.half().save_pretrained(folder, safe_serialization=True)
    checkpoint.write_head(folder)
