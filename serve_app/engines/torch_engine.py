"""PyTorch: the checkpoint's own modules in half precision, for GPUs and for reference.

Only safetensors weights are read, and nothing is looked up outside the artifact's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

from serve_app.engines.base import Device, TokenIds, Vectors, pad
from serve_app.engines.mixed_precision import autocasting, halve
from serve_app.engines.pooling import pool
from serve_app.manifest import Pooling, Variant

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchEngine:
    """A transformers encoder with pooling and normalisation."""

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        pooling: Pooling,
        pad_id: int,
        device: Device,
    ) -> None:
        self._model = model.eval().to(device)
        self._pooling: Pooling = pooling
        self._pad_id = pad_id
        self._device = device

    @torch.inference_mode()
    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        ids, mask = (torch.from_numpy(a).to(self._device) for a in pad(texts, self._pad_id))
        states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        vectors = torch.nn.functional.normalize(pool(states, mask, self._pooling), dim=-1)
        return np.asarray(vectors.cpu().numpy())


def open_engine(folder: Path, variant: Variant, threads: int, device: Device) -> TorchEngine:
    """Load the weights; see `serve_app.engines.base.open_engine`."""
    if device == "cpu":
        torch.set_num_threads(threads)
    is_mixed = variant.autocast or variant.kept_fp32
    loaded_as = torch.float32 if is_mixed else DTYPES[variant.precision]
    model = AutoModel.from_pretrained(
        folder, dtype=loaded_as, use_safetensors=True, local_files_only=True
    )
    if variant.kept_fp32:
        halve(model, kept_fp32=variant.kept_fp32)
    if variant.autocast:
        model = autocasting(model, DTYPES[variant.precision])
    return TorchEngine(
        model,
        pooling=variant.checkpoint.pooling,
        pad_id=variant.tokenizer.pad_id,
        device=device,
    )
