"""One ONNX graph from token ids to unit vectors: transformer, pooling, head and normalisation.

The graph is left as the exporter wrote it. ONNX Runtime fuses it when a session loads it (offline
fusion gained ~0 % on CPU), and the INT8 recipe (`to_int8.py`) finds its matrix products only in an
unfused graph. TorchScript goes first: it takes 1-2 s where dynamo takes 7-37 s. What it traces can
be wrong for other shapes without any error, so a graph counts only when its vectors agree.
"""

import contextlib
import io
import itertools
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch

from converters.transformer_facts import first_line
from serve_app.engines.pooling import SentenceEmbedder
from serve_app.errors import ConversionError
from serve_app.manifest import Pooling

OPSET = 18
INPUT_NAMES = ("input_ids", "attention_mask")
OUTPUT_NAME = "sentence_embedding"  # the dynamo exporter writes an invalid model for "embedding"
EXPORTERS = {"TorchScript": False, "dynamo": True}  # in the order in which they are tried
MAX_EXPORT_ERROR = 1e-5  # of a unit vector's component; rounding gives 1e-7
TRACED_TOKENS = 8
# A protobuf message holds 2 GiB; above that the exporters put weights into files of their own beside
# the graph, which `converters` does not carry along. The rest is room for the graph itself.
MAX_WEIGHT_BYTES = 2_000_000_000
LOW_IDS = np.arange(2, 33)  # 0 and 1 are the usual padding, by which RoBERTa counts positions
OPERATOR = re.compile(r"\b(?:aten|prims|torchvision)(?:::|\.)\w+")

logger = logging.getLogger(__name__)


def export(
    model: torch.nn.Module,
    out_file: Path,
    *,
    pooling: Pooling,
    head: torch.nn.Module | None = None,
) -> None:
    """Write `model` (eager attention, FP32) to `out_file` as ONNX, checked for validity.

    Inputs `input_ids` and `attention_mask`, int64 [batch, tokens], both axes dynamic; output
    `sentence_embedding`, float32 [batch, dims]. Raises `ConversionError` when no exporter succeeds,
    or the weights do not fit into one file.
    """
    embedder = SentenceEmbedder(model, pooling=pooling, head=head).eval()
    _require_one_file(embedder)
    reasons = []
    with tempfile.TemporaryDirectory(dir=out_file.parent, prefix=".export-") as folder:
        draft = Path(folder) / out_file.name
        for name, dynamo in EXPORTERS.items():
            try:
                _run_exporter(embedder, draft, dynamo=dynamo)
                _require_same_vectors(embedder, draft)
            except Exception as error:  # the exporters raise whatever the traced model raises
                logger.warning("%s export failed: %s", name, first_line(error))
                reasons.append(f"{name}: {_reason(error)}")
            else:
                draft.replace(out_file)
                return
    raise ConversionError(
        f"ONNX export of {type(model).__name__} failed. {'; '.join(reasons)}. Try a newer torch and "
        "transformers, or build only the variants that run in PyTorch (--variants torch-fp16)"
    )


def parity_error(
    model: torch.nn.Module,
    onnx_file: Path,
    *,
    pooling: Pooling,
    head: torch.nn.Module | None = None,
    batch: tuple[np.ndarray, np.ndarray] | None = None,
) -> float:
    """Largest absolute difference between the file's vectors and PyTorch's on a padded batch.

    `batch` is (input_ids, attention_mask), int64 [batch, tokens]; the default is a small made-up one
    with other sizes than the export used, so an axis frozen by tracing shows.
    """
    embedder = SentenceEmbedder(model, pooling=pooling, head=head).eval()
    return _difference(embedder, onnx_file, batch or _example(batch_size=3, tokens=11))


def _require_one_file(embedder: SentenceEmbedder) -> None:
    """Refuse before minutes of exporting what would end as a graph without its weights."""
    tensors = itertools.chain(embedder.parameters(), embedder.buffers())
    weight_bytes = sum(tensor.nbytes for tensor in tensors)  # shared weights come once
    if weight_bytes > MAX_WEIGHT_BYTES:
        raise ConversionError(
            f"{type(embedder.model).__name__} has {weight_bytes / 1e9:.3g} GB of weights in FP32, and "
            f"an ONNX file holds {MAX_WEIGHT_BYTES / 1e9:.3g} GB; build the variants that run in "
            "PyTorch (--variants torch-fp16,torch-bf16)"
        )


def _require_same_vectors(embedder: SentenceEmbedder, draft: Path) -> None:
    """Shorter and longer than what was traced: a window or a mask of a fixed size shows."""
    onnx.checker.check_model(str(draft), full_check=True)
    for tokens in (TRACED_TOKENS // 2, 3 * TRACED_TOKENS):
        error = _difference(embedder, draft, _example(batch_size=3, tokens=tokens))
        if not error <= MAX_EXPORT_ERROR:
            raise ConversionError(
                f"its vectors differ from PyTorch's by {error:.1e} a component at {tokens} tokens"
            )


def _difference(
    embedder: SentenceEmbedder, onnx_file: Path, batch: tuple[np.ndarray, np.ndarray]
) -> float:
    with torch.inference_mode():
        expected = embedder(*(torch.from_numpy(array) for array in batch)).numpy()
    session = ort.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT_NAME], dict(zip(INPUT_NAMES, batch, strict=True)))
    return float(np.abs(found - expected).max())


def _run_exporter(embedder: SentenceEmbedder, draft: Path, *, dynamo: bool) -> None:
    arrays = _example(batch_size=2, tokens=TRACED_TOKENS)
    axes = {name: {0: "batch", 1: "tokens"} for name in INPUT_NAMES}
    with torch.inference_mode(not dynamo), quiet():
        torch.onnx.export(
            embedder,
            tuple(torch.from_numpy(array) for array in arrays),
            str(draft),
            input_names=list(INPUT_NAMES),
            output_names=[OUTPUT_NAME],
            dynamic_axes=None if dynamo else {**axes, OUTPUT_NAME: {0: "batch"}},
            dynamic_shapes=axes if dynamo else None,
            opset_version=OPSET,
            dynamo=dynamo,
            external_data=False,
        )


def _reason(error: Exception) -> str:
    """The first line of an exporter's error, and the operator where a later line names it."""
    line = first_line(error)
    operator = OPERATOR.search(str(error))
    return line if operator is None or operator[0] in line else f"{line} (operator {operator[0]})"


def _example(*, batch_size: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Low token ids, and a mask in which each row is one token shorter than the row before."""
    input_ids = LOW_IDS[np.arange(batch_size * tokens).reshape(batch_size, tokens) % len(LOW_IDS)]
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
