"""The checkpoint's own weights, as safetensors of the wanted type, for the torch engines.

BF16 has FP32's range, so nothing can overflow and no scan is needed. Dynamic INT8 keeps FP32 files:
PyTorch saves quantised modules as pickles only, and those are never read. `torch_int8_engine` rounds
the weights each time it opens them, deterministically and in a fraction of a second.
"""

from __future__ import annotations

from pathlib import Path

import torch

from converters.checkpoint import Checkpoint
from serve_app.errors import ConversionError


def require_known_model(checkpoint: Checkpoint) -> None:
    """The torch engine makes models of transformers' own classes only.

    Raises:
        ConversionError: the model is code of the checkpoint's.
    """
    if checkpoint.trust_remote_code and checkpoint.brings_code:
        raise ConversionError(
            "PyTorch would run the checkpoint's own code in the server; build the variants whose "
            "graph holds it: --variants onnx-fp32,onnx-int8"
        )


def write_weights(checkpoint: Checkpoint, folder: Path, *, dtype: torch.dtype) -> None:
    """Write configuration and weights in `dtype`, and the head, into an artifact folder.

    Raises:
        ConversionError: see `require_known_model`.
    """
    require_known_model(checkpoint)
    checkpoint.load_model().to(dtype).save_pretrained(folder, safe_serialization=True)
    checkpoint.write_head(folder)
