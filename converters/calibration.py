"""Running calibration texts through ONNX graphs, and reading activations off on the way.

Calibration is batches of padded texts; padding is left out of everything that is read.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper

from converters.onnx_graph import Floats
from serve_app.engines.onnx_engine import session_options

TokenBatch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # ids, mask: [batch, tokens]
Losses = npt.NDArray[np.float64]  # 1 - cosine, one a text

MAX_OBSERVED_TOKENS = 2048  # a forward pass with every activation kept: ~150 MB for a 384-dim BERT
INPUT_NAMES = ("input_ids", "attention_mask")
HELD_OUT = 4  # every fourth calibration text decides between the roundings, and feeds neither


def split(batches: Sequence[TokenBatch]) -> tuple[list[TokenBatch], list[TokenBatch]]:
    """Batches of the texts that learn a rounding, and of every `HELD_OUT`-th text, that judges it."""
    sides: tuple[list[TokenBatch], list[TokenBatch]] = ([], [])
    seen = 0
    for input_ids, attention_mask in batches:
        judges = np.arange(seen, seen + len(input_ids)) % HELD_OUT == HELD_OUT - 1
        seen += len(input_ids)
        for side, rows in zip(sides, (~judges, judges), strict=True):
            if rows.any():
                side.append((input_ids[rows], attention_mask[rows]))
    return sides


def distance(reference_file: Path, file: Path, batches: Sequence[TokenBatch]) -> float:
    """Mean 1 - cosine between the unit vectors of two graphs; infinite where one is not finite."""
    return mean_of(distances(reference_file, file, batches))


def mean_of(losses: Losses) -> float:
    """Infinite where one is not finite, or there is none."""
    mean = float(losses.mean()) if losses.size else math.inf
    return mean if math.isfinite(mean) else math.inf


def distances(reference_file: Path, file: Path, batches: Sequence[TokenBatch]) -> Losses:
    """1 - cosine between the unit vectors of two graphs, one a text."""
    expected, found = open_session(str(reference_file)), open_session(str(file))
    apart = [
        1 - (run(expected, batch)[0].astype(np.float64) * run(found, batch)[0]).sum(axis=1)
        for batch in batches
    ]
    return np.concatenate(apart) if apart else np.empty(0)


def activations(
    file: Path, names: Sequence[str], batches: Sequence[TokenBatch]
) -> Iterator[tuple[str, Floats]]:
    """Run batches and give each named tensor of each, float32 [real tokens, channels]."""
    model = onnx.load(str(file))
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = open_session(model.SerializeToString())
    for batch in _small(batches):
        for name, values in zip(names, run(session, batch), strict=True):
            yield name, _real_rows(values, batch[1])


def open_session(model: bytes | str) -> ort.InferenceSession:
    """A session that computes as the engine will, on one thread: the machine must stay usable."""
    return ort.InferenceSession(model, session_options(1), providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, batch: TokenBatch) -> list[Floats]:
    outputs: list[Floats] = session.run(None, dict(zip(INPUT_NAMES, batch, strict=True)))
    return outputs


def _small(batches: Sequence[TokenBatch]) -> Iterator[TokenBatch]:
    """Split batches by rows until each holds few enough tokens to keep all its activations."""
    for input_ids, attention_mask in batches:
        rows = max(1, MAX_OBSERVED_TOKENS // input_ids.shape[1])
        for start in range(0, len(input_ids), rows):
            yield input_ids[start : start + rows], attention_mask[start : start + rows]


def _real_rows(values: Floats, attention_mask: npt.NDArray[np.int64]) -> Floats:
    """The activation of real tokens, [n, channels], whether it is laid out by text or by token."""
    flat = values.reshape(-1, values.shape[-1])
    is_per_token = len(flat) == attention_mask.size
    return flat[attention_mask.reshape(-1) > 0] if is_per_token else flat
