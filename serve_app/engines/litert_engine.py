"""LiteRT on the CPU: a graph for each of some lengths, all over the same weights, a text at a time.

LiteRT's converter knows no graph whose length varies, so a text is padded to the next length that
has one. Texts never share a run, hence no text can move another's vector. An interpreter's tensors are
its own, so it has one stream.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter, SignatureRunner

from serve_app.engines.base import MODEL_FILES, Device, TokenIds, Vectors
from serve_app.errors import ArtifactError
from serve_app.manifest import Variant

INPUTS = ("args_0", "args_1")  # token ids and mask, int32 [1, tokens]; named by the converter
OUTPUT = "output_0"
SIGNATURE = "tokens_{}"  # of the graph for so many tokens


class LiteRtEngine:
    """One interpreter, with a runner for each length."""

    def __init__(self, interpreter: Interpreter, *, pad_id: int) -> None:
        self._lengths = sorted(map(_tokens, interpreter.get_signature_list()))
        self._runners: dict[int, SignatureRunner] = {
            tokens: interpreter.get_signature_runner(SIGNATURE.format(tokens))
            for tokens in self._lengths
        }
        self._pad_id = pad_id
        # A graph's first run allocates and packs its weights, which no request should wait for.
        self.embed([np.zeros(tokens, dtype=np.int32) for tokens in self._lengths])

    @property
    def longest(self) -> int:
        """Tokens of the longest text it takes."""
        return self._lengths[-1]

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        return np.concatenate([self._embed_one(ids) for ids in texts])

    def _embed_one(self, ids: TokenIds) -> Vectors:
        tokens = self._lengths[bisect_left(self._lengths, len(ids))]
        row = np.full((1, tokens), self._pad_id, dtype=np.int32)
        row[0, : len(ids)] = ids
        mask = (np.arange(tokens) < len(ids)).astype(np.int32)[None]
        outputs = self._runners[tokens](**dict(zip(INPUTS, (row, mask), strict=True)))
        return np.asarray(outputs[OUTPUT], dtype=np.float32)


def open_engine(
    folder: Path, variant: Variant, threads: int, device: Device, streams: int = 1
) -> LiteRtEngine:
    """Load `model.tflite`; see `serve_app.engines.base.open_engine`. There is no GPU for it."""
    del device, streams
    interpreter = Interpreter(str(folder / MODEL_FILES["litert"]), num_threads=threads)
    engine = LiteRtEngine(interpreter, pad_id=variant.tokenizer.pad_id)
    if engine.longest < variant.checkpoint.max_tokens:
        raise ArtifactError(
            f"{folder}: its longest graph takes {engine.longest} tokens, its texts have up to "
            f"{variant.checkpoint.max_tokens}; rebuild the variant"
        )
    return engine


def _tokens(signature: str) -> int:
    return int(signature.rpartition("_")[2])
