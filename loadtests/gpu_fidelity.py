"""Correct first: FP16 against FP32 on the probe texts, and against itself in other company."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from converters.fidelity import cosines
from loadtests import gpu_checkpoint
from loadtests.gpu_bench import Bench, facts, mixed_lengths, texts_of
from loadtests.gpu_readings import Deadline, Reading, Skip
from serve_app.engines.base import TokenIds, Vectors
from serve_app.engines.packed.attention import is_right
from serve_app.engines.packed.engine import PackedEngine
from serve_app.engines.packed.opening import PLAIN, pack
from serve_app.engines.torch_engine import TorchEngine, load_head, load_transformer

ALONE = 24  # texts run on their own too


def checkpoint_engine(bench: Bench, dtype: torch.dtype, *, graphs: bool = True) -> PackedEngine:
    """The carried checkpoint without padding."""
    if bench.checkpoint is None:
        raise Skip("no --checkpoint")
    found, _ = gpu_checkpoint.read(bench.checkpoint)
    return pack(
        load_transformer(bench.checkpoint, dtype=dtype),
        found.facts,
        head=load_head(bench.checkpoint, found.facts),
        target=bench.target(None if graphs else PLAIN),
    )


def kernel(bench: Bench, _: Deadline) -> Iterator[Reading]:
    """Whether the attention kernel runs here and agrees with the reference, in both half precisions."""
    for shape in bench.shapes:
        for dtype in (torch.float16, torch.bfloat16):
            right = is_right(
                bench.target().attention,
                bench.device,
                dtype,
                heads=shape.heads,
                head_dims=shape.dims // shape.heads,
            )
            yield Reading(
                what="kernel is right",
                value=float(right),
                of={"shape": shape.name, "dtype": str(dtype).removeprefix("torch.")},
            )


def checkpoint(bench: Bench, _: Deadline) -> Iterator[Reading]:
    """The real checkpoint against its FP32 vectors, which travelled with it."""
    if bench.checkpoint is None:
        raise Skip("no --checkpoint")
    probe = gpu_checkpoint.read(bench.checkpoint)[1]
    texts, expected = probe.texts, probe.vectors
    if bench.quick:
        texts, expected = texts[:40], expected[:40]
    for dtype in (torch.float16, torch.bfloat16):
        engine = checkpoint_engine(bench, dtype)
        labels = {"engine": f"packed {str(dtype).removeprefix('torch.')}"}
        vectors = engine.embed(texts)
        close = cosines(vectors, expected)
        yield Reading(what="fidelity p1", value=float(np.percentile(close, 1)), of=labels)
        yield Reading(what="fidelity min", value=float(close.min()), of=labels)
        yield Reading(what="drift alone", value=_drift(engine, texts, vectors), of=labels)
        again = float(np.abs(engine.embed(texts) - vectors).max())
        yield Reading(what="difference run to run", value=again, of=labels)


def shapes(bench: Bench, deadline: Deadline) -> Iterator[Reading]:
    """Random weights: the packed path in FP16 against the padded one in FP32 on the same device."""
    for shape in bench.shapes:
        texts = texts_of(mixed_lengths(24, max_tokens=shape.max_tokens))
        model = bench.model(shape, torch.float32)
        expected = TorchEngine(model, pooling="mean", pad_id=0, device=bench.name).embed(texts)
        del model
        packed = pack(
            bench.model(shape, torch.float16),
            facts(shape),
            head=torch.nn.Sequential(),
            target=bench.target(),
        )
        close = cosines(packed.embed(texts), expected)
        yield Reading(what="parity min", value=float(close.min()), of={"shape": shape.name})
        if deadline.left_s == 0:
            return


def _drift(engine: PackedEngine, texts: list[TokenIds], together: Vectors) -> float:
    """1 - cosine of a text alone and among all others, at most."""
    sample = np.unique(np.linspace(0, len(texts) - 1, ALONE).astype(int))
    alone = np.concatenate([engine.embed([texts[i]]) for i in sample])
    return float((1 - cosines(alone, together[sample])).max())
