"""FP16 for GPUs: half the size, without the layers that FP16 would break; or FP32 under autocast."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from converters.calibration import TokenBatch
from converters.checkpoint import Checkpoint
from converters.overflow import scan
from converters.to_torch import require_known_model
from serve_app.engines.mixed_precision import halve


def write_half(
    checkpoint: Checkpoint, folder: Path, *, batches: Sequence[TokenBatch]
) -> tuple[str, ...]:
    """Write weights and configuration into an artifact folder, FP16 but for what must stay FP32.

    Args:
        checkpoint: the source.
        folder: the artifact.
        batches: texts to look for overflow with, (ids, mask), int64 [batch, tokens].

    Returns:
        The modules kept in FP32, which the engine must be told.

    Raises:
        ConversionError: FP16 overflows everywhere, or the model is code of the checkpoint's.
    """
    require_known_model(checkpoint)
    model = checkpoint.load_model()
    kept = tuple(scan(model, batches).kept)
    halve(model, kept_fp32=kept)
    model.save_pretrained(folder, safe_serialization=True)
    checkpoint.write_head(folder)
    return kept
