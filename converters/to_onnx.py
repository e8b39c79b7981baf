"""One ONNX graph from token ids to unit vectors: transformer, pooling and normalisation.

The graph is left as the exporter wrote it. ONNX Runtime fuses it when a session loads it (offline
fusion gained ~0 % on CPU), and the INT8 recipe (`to_int8.py`) finds its matrix products only in an
unfused graph.
"""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch

from serve_app.engines.pooling import pool
from serve_app.errors import ConversionError
from serve_app.manifest import Pooling

OPSET = 18
INPUT_NAMES = ("input_ids", "attention_mask")
OUTPUT_NAME = "sentence_embedding"  # the dynamo exporter writes an invalid model for "embedding"

logger = logging.getLogger(__name__)


class SentenceEmbedder(torch.nn.Module):
    """A transformer with pooling and normalisation to unit length, as one module."""

    def __init__(self, model: torch.nn.Module, *, pooling: Pooling) -> None:
        super().__init__()
        self.model = model
        self.pooling: Pooling = pooling

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Map int64 [batch, tokens] ids and mask to float32 [batch, dims]."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        vectors = pool(output.last_hidden_state, attention_mask, self.pooling)
        return torch.nn.functional.normalize(vectors, dim=-1)


def export(model: torch.nn.Module, out_file: Path, *, pooling: Pooling) -> None:
    """Write `model` (eager attention, FP32) to `out_file` as ONNX, checked for validity.

    Inputs `input_ids` and `attention_mask`, int64 [batch, tokens], both axes dynamic; output
    `sentence_embedding`, float32 [batch, dims]. Raises `ConversionError` when no exporter succeeds.
    """
    embedder = SentenceEmbedder(model, pooling=pooling).eval()
    with tempfile.TemporaryDirectory(dir=out_file.parent, prefix=".export-") as folder:
        draft = Path(folder) / out_file.name
        try:
            _run_exporter(embedder, draft, dynamo=False)
        except Exception as error:  # the exporters raise whatever the traced model raises
            logger.warning("TorchScript export failed (%s), trying dynamo", _first_line(error))
            _run_exporter_or_fail(embedder, draft)
        onnx.checker.check_model(str(draft), full_check=True)
        draft.replace(out_file)


def parity_error(
    model: torch.nn.Module,
    onnx_file: Path,
    *,
    pooling: Pooling,
    batch: tuple[np.ndarray, np.ndarray] | None = None,
) -> float:
    """Largest absolute difference between the file's vectors and PyTorch's on a padded batch.

    `batch` is (input_ids, attention_mask), int64 [batch, tokens]; the default is a small made-up one
    with other sizes than the export used, so an axis frozen by tracing shows.
    """
    input_ids, attention_mask = batch or _example(batch_size=3, tokens=11)
    embedder = SentenceEmbedder(model, pooling=pooling).eval()
    with torch.inference_mode():
        expected = embedder(torch.from_numpy(input_ids), torch.from_numpy(attention_mask)).numpy()
    session = ort.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    feeds = dict(zip(INPUT_NAMES, (input_ids, attention_mask), strict=True))
    (found,) = session.run([OUTPUT_NAME], feeds)
    return float(np.abs(found - expected).max())


def _run_exporter_or_fail(embedder: SentenceEmbedder, draft: Path) -> None:
    try:
        _run_exporter(embedder, draft, dynamo=True)
    except Exception as error:
        raise ConversionError(f"ONNX export failed: {_first_line(error)}") from error


def _run_exporter(embedder: SentenceEmbedder, draft: Path, *, dynamo: bool) -> None:
    example = tuple(torch.from_numpy(array) for array in _example(batch_size=2, tokens=8))
    axes = {name: {0: "batch", 1: "tokens"} for name in INPUT_NAMES}
    with torch.inference_mode(not dynamo), quiet():
        torch.onnx.export(
            embedder,
            example,
            str(draft),
            input_names=list(INPUT_NAMES),
            output_names=[OUTPUT_NAME],
            dynamic_axes=None if dynamo else {**axes, OUTPUT_NAME: {0: "batch"}},
            dynamic_shapes=axes if dynamo else None,
            opset_version=OPSET,
            dynamo=dynamo,
            external_data=False,
        )


def _example(*, batch_size: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids 1.. and a mask in which each row is one token shorter than the row before."""
    input_ids = np.arange(1, batch_size * tokens + 1, dtype=np.int64).reshape(batch_size, tokens)
    lengths = tokens - np.arange(batch_size)
    attention_mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    return input_ids, attention_mask


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters: tracer warnings, progress on stdout, and their loggers."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
