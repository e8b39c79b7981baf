"""PyTorch dynamic INT8 on the CPU: FP32 weights from safetensors, rounded when they are opened."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

from serve_app.engines import torch_engine
from serve_app.engines.base import Device
from serve_app.engines.torch_engine import TorchEngine
from serve_app.errors import ArtifactError
from serve_app.manifest import Variant


def open_engine(
    folder: Path, variant: Variant, threads: int, device: Device, streams: int = 1
) -> TorchEngine:
    """Load and round the weights; see `serve_app.engines.base.open_engine`."""
    del streams  # as many as of any other model of PyTorch's
    if device != "cpu":
        raise ArtifactError(f"{variant.variant}: PyTorch has dynamic INT8 kernels for CPUs only")
    torch.set_num_threads(threads)
    engine = torch_engine.open_padded(folder, replace(variant, precision="fp32"))
    round_linears(engine.module)
    return engine


def round_linears(model: torch.nn.Module) -> None:
    """Make a model's linear layers INT8: weights per output channel, activations per batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated in favour of another package, torchao
        quantize_dynamic(  # type: ignore[no-untyped-call]
            model, {torch.nn.Linear: per_channel_dynamic_qconfig}, inplace=True
        )
