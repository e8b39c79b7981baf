"""INT8 for LiteRT, the runtime of phones: weights per channel, activations per token as they run.

LiteRT's converter (litert-torch 0.10.0) stops at a graph of varying length ("'<=' not supported between
instances of 'int' and 'Node'"), so there is one graph for each of some lengths, each with its name;
their weights are in the file once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from converters.onnx_graph import MATRIX_NDIM
from converters.to_onnx import LOW_IDS, MAX_EXPORT_ERROR, quiet
from converters.transformer_facts import first_line
from serve_app.errors import ConversionError

if TYPE_CHECKING:
    from serve_app.engines.pooling import SentenceEmbedder

PACKAGES = ("litert_torch", "ai_edge_quantizer", "ai_edge_litert")
SHORTEST = 8  # tokens; a shorter text gains nothing that would pay for one more graph
STEPS_PER_DOUBLING = 2  # with 4, 4 % more texts a second, for twice the memory and time to convert
LONGEST = 2048  # tokens; attention of a fixed length holds that squared per head while it is traced


def missing() -> str | None:
    """What stands in the way of building it here."""
    lacks = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if not lacks:
        return None
    return f"needs the package{'s' * (len(lacks) > 1)} {', '.join(lacks)}: run `pip install '.[litert-convert]'`"


def lengths(max_tokens: int) -> list[int]:
    """Tokens of each graph: 8, 12, 16, 24, 32 … so that no text is padded by over a half."""
    found, tokens = [], SHORTEST
    while tokens < max_tokens:
        found.append(tokens)
        tokens += (1 << (tokens.bit_length() - 1)) // STEPS_PER_DOUBLING
    return [*found, max_tokens]


def write_int8(embedder: SentenceEmbedder, out_file: Path, *, max_tokens: int) -> None:
    """Write `embedder` (eager attention, FP32) to `out_file` with INT8 weights.

    Each graph takes token ids and mask, int32 [1, tokens], and gives float32 [1, dims].

    Raises:
        ConversionError: it cannot be converted, its FP32 form gives other vectors than PyTorch, or
            a linear layer stays in float.
    """
    if max_tokens > LONGEST:
        raise ConversionError(
            f"litert-int8 has graphs of up to {LONGEST} tokens, the checkpoint takes {max_tokens}; "
            "leave it out of --variants"
        )
    graphs = lengths(max_tokens)
    with tempfile.TemporaryDirectory(dir=out_file.parent, prefix=".litert-") as folder:
        plain, draft = Path(folder) / "fp32.tflite", Path(folder) / out_file.name
        try:
            _convert(embedder.eval(), plain, graphs)
        except Exception as error:  # the converter raises whatever the traced model raises
            raise ConversionError(
                f"LiteRT cannot convert {type(embedder.model).__name__}: {first_line(error)}; "
                "leave litert-int8 out of --variants"
            ) from error
        _require_same_vectors(embedder, plain, graphs)
        _quantise(plain, draft)
        _require_integer_weights(embedder, draft)
        draft.replace(out_file)


def _convert(embedder: SentenceEmbedder, out_file: Path, graphs: list[int]) -> None:
    import litert_torch
    from litert_torch._config import config

    from serve_app.engines.litert_engine import SIGNATURE

    config.show_progress = False
    converter = litert_torch
    for tokens in graphs:
        arrays = tuple(map(torch.from_numpy, _example(tokens)))
        converter = converter.signature(SIGNATURE.format(tokens), embedder, arrays)
    with quiet():
        converter.convert().export(str(out_file))


def _require_same_vectors(embedder: SentenceEmbedder, file: Path, graphs: list[int]) -> None:
    """Every graph: what one of them froze for its own length would show in no other."""
    from ai_edge_litert.interpreter import Interpreter

    from serve_app.engines.litert_engine import INPUTS, OUTPUT, SIGNATURE

    interpreter = Interpreter(str(file), num_threads=1)
    for tokens in graphs:
        arrays = _example(tokens)
        with torch.inference_mode():
            expected = embedder(*map(torch.from_numpy, arrays)).numpy()
        run = interpreter.get_signature_runner(SIGNATURE.format(tokens))
        found = run(**dict(zip(INPUTS, arrays, strict=True)))[OUTPUT]
        error = float(np.abs(found - expected).max())
        if not error <= MAX_EXPORT_ERROR:
            raise ConversionError(
                f"LiteRT's vectors differ from PyTorch's by {error:.1e} a component at {tokens} tokens"
            )


def _quantise(plain: Path, out_file: Path) -> None:
    from ai_edge_quantizer import quantizer, recipe

    with quiet(), contextlib.redirect_stderr(io.StringIO()):  # its progress bars would tear ours
        maker = quantizer.Quantizer(str(plain), recipe.dynamic_wi8_afp32())
        maker.quantize().export_model(str(out_file))


def _require_integer_weights(embedder: SentenceEmbedder, file: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    linears = sum(isinstance(module, nn.Linear) for module in embedder.modules())
    tensors = Interpreter(str(file), num_threads=1).get_tensor_details()
    found = sum(t["dtype"] is np.int8 and len(t["shape"]) == MATRIX_NDIM for t in tensors)
    if found < linears:
        raise ConversionError(
            f"only {found} of {linears} linear layers have INT8 weights in LiteRT"
        )


def _example(tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """One text of low token ids, a quarter of it padding."""
    ids = LOW_IDS[np.arange(tokens) % len(LOW_IDS)][None].astype(np.int32)
    mask = (np.arange(tokens) < tokens - tokens // 4).astype(np.int32)[None]
    return ids, mask
