"""PyTorch: the checkpoint's own modules in half precision, for GPUs and for reference.

On a GPU, BERT-like models in one precision run without padding (`engines/packed`); all else, and everything
on a CPU, runs here as one padded batch with PyTorch's scaled dot-product attention. Only safetensors weights are read, and nothing is looked up outside the artifact's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PreTrainedModel

from serve_app.engines.base import Device, Engine, TokenIds, Vectors, pad
from serve_app.engines.memory import CudaMeter
from serve_app.engines.mixed_precision import (
    autocasting,
    cpu_multiplies_in,
    halve,
    widen_products,
)
from serve_app.engines.pooling import SentenceEmbedder, make_head
from serve_app.errors import ArtifactError
from serve_app.manifest import Checkpoint, Pooling, Variant

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
HEAD_NAME = "head.safetensors"
POOLER = "pooler."  # BERT's own, which no embedding uses: many checkpoints leave its weights out


class TorchEngine:
    """A transformers encoder with pooling, head and normalisation."""

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        pooling: Pooling,
        pad_id: int,
        device: Device,
        head: torch.nn.Module | None = None,
    ) -> None:
        embedder = SentenceEmbedder(model, pooling=pooling, head=head)
        self._embedder = embedder.eval().to(device)
        self._pad_id = pad_id
        self._device = device

    @property
    def module(self) -> torch.nn.Module:
        """What runs, for engines that rewrite its layers in place."""
        return self._embedder.model

    @torch.inference_mode()  # of the calling thread
    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        ids, mask = (torch.from_numpy(a).to(self._device) for a in pad(texts, self._pad_id))
        return np.asarray(self._embedder(ids, mask).cpu().numpy())


def open_engine(
    folder: Path, variant: Variant, threads: int, device: Device, streams: int = 1
) -> Engine:
    """Load the weights; see `serve_app.engines.base.open_engine`."""
    del streams  # a forward pass writes nothing that another reads
    if device == "cpu":
        torch.set_num_threads(threads)  # of each thread that computes, in the whole process
        return open_padded(folder, variant)
    if variant.autocast or variant.kept_fp32:
        return open_padded(folder, variant, device="cuda")
    from serve_app.engines.packed.opening import on_gpu, packed_if_possible

    model, checkpoint = (
        load_transformer(folder, dtype=DTYPES[variant.precision]),
        variant.checkpoint,
    )
    head = load_head(folder, checkpoint)
    packed = packed_if_possible(model, checkpoint, head=head, target=on_gpu(), meter=CudaMeter())
    return packed or open_padded(folder, variant, device="cuda")


def open_padded(folder: Path, variant: Variant, *, device: Device = "cpu") -> TorchEngine:
    """The engine that runs any model, as one padded batch."""
    dtype = DTYPES[variant.precision]
    is_mixed = variant.autocast or variant.kept_fp32
    model: torch.nn.Module = load_transformer(folder, dtype=torch.float32 if is_mixed else dtype)
    if variant.kept_fp32:
        halve(model, kept_fp32=variant.kept_fp32)
    if variant.autocast:
        model = autocasting(model, dtype)
    if device == "cpu" and not cpu_multiplies_in(dtype):
        widen_products(model, dtype)
    return TorchEngine(
        model,
        pooling=variant.checkpoint.pooling,
        pad_id=variant.tokenizer.pad_id,
        device=device,
        head=load_head(folder, variant.checkpoint),
    )


def load_transformer(
    folder: Path,
    *,
    dtype: torch.dtype,
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model of a folder, in evaluation mode; of a sequence-to-sequence model, its encoder.

    Args:
        folder: configuration and safetensors weights.
        dtype: of the weights in memory.
        attention: the implementation, "eager" for exports; by default transformers' choice.
        trust_remote_code: run Python files that the checkpoint brings.

    Raises:
        ArtifactError: a weight is missing, which transformers would fill with noise.
    """
    # A model whose code lives in another repository of the hub is found there or in the cache.
    where = {"local_files_only": not trust_remote_code, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(folder, **where)
    # A saved T5EncoderModel no longer says is_encoder_decoder, and AutoModel would add a decoder.
    is_encoder = (config.architectures or [""])[0].endswith("EncoderModel")
    has_decoder = config.is_encoder_decoder or is_encoder
    loader = AutoModelForTextEncoding if has_decoder else AutoModel
    model, info = loader.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=attention,
        use_safetensors=True,
        output_loading_info=True,
        **where,
    )
    if missing := sorted(k for k in info["missing_keys"] if not k.startswith(POOLER)):
        raise ArtifactError(
            f"{folder}: the weights lack {missing[0]} and {len(missing) - 1} more; "
            "they do not belong to this config.json"
        )
    model.config.use_cache = False  # a decoder would keep keys and values that nobody asks for
    return cast("PreTrainedModel", model.eval())


def load_head(folder: Path, checkpoint: Checkpoint) -> torch.nn.Sequential:
    """What an artifact's checkpoint does after pooling.

    Raises:
        ArtifactError: it needs weights that the folder lacks.
    """
    has_weights = "dense" in checkpoint.head
    if has_weights and not (folder / HEAD_NAME).is_file():
        raise ArtifactError(f"{folder}: {HEAD_NAME} is missing; rebuild the variant")
    weights = load_file(folder / HEAD_NAME) if has_weights else {}
    return make_head(checkpoint.head, dims=checkpoint.dims, weights=weights)
