"""Memory on the card: what batches take, whether that foretells larger ones, and running out of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from loadtests.gpu_bench import Bench, texts_of
from loadtests.gpu_readings import Deadline, Reading, Skip
from serve_app.engines.memory import (
    CudaMeter,
    HalvingEngine,
    measure_activations,
    release_cached,
    take_share,
)
from serve_app.engines.packed.opening import PLAIN

MOST_TEXTS = 2048  # of one request, the server's default
FORETOLD_TOKENS = 65_536
SCARCE_BYTES = 64 * 2**20  # left to a process that is to run out


def memory(bench: Bench, _: Deadline) -> Iterator[Reading]:
    """Fit the model of activations, hold it against a larger batch, run the largest legal request, run out."""
    if not bench.on_gpu:
        raise Skip("memory is metered on a GPU")
    meter = CudaMeter()
    for shape in bench.shapes:
        engine = bench.packed(shape, tuning=PLAIN)  # a replay allocates nothing
        labels = {"shape": shape.name}
        found = measure_activations(engine, meter, text_tokens=128)
        yield Reading(what="bytes a token", value=found.bytes_per_token, of=labels)
        texts = texts_of([128] * (FORETOLD_TOKENS // 128))
        peak = meter.peak_bytes(partial(engine.embed, texts))
        ratio = peak / found.bytes_of(FORETOLD_TOKENS)
        yield Reading(what="peak / foretold", value=ratio, of=labels | {"tokens": FORETOLD_TOKENS})
        engine.most_tokens = found.most_tokens(meter.free_bytes(), least=shape.max_tokens)
        yield Reading(what="most tokens a batch", value=engine.most_tokens, of=labels)
        legal = texts_of([shape.max_tokens] * MOST_TEXTS)
        vectors = engine.embed(legal)
        yield Reading(
            what="largest request is whole", value=float(np.isfinite(vectors).all()), of=labels
        )
        del engine, vectors
    yield _running_out(bench)


def _running_out(bench: Bench) -> Reading:
    """A batch that cannot fit is run in smaller ones, and the engine lives."""
    shape = bench.small
    engine = bench.packed(shape, tuning=PLAIN)
    texts = texts_of([128] * 2048)
    expected = engine.embed(texts[:4])
    release_cached()
    total = torch.cuda.get_device_properties(bench.device).total_memory
    halved: list[bool] = []

    def release() -> None:
        halved.append(True)
        release_cached()

    take_share((torch.cuda.memory_allocated() + SCARCE_BYTES) / total)
    try:
        vectors = HalvingEngine(engine, release=release).embed(texts)
    finally:
        take_share(1.0)
    right = bool(np.allclose(vectors[:4], expected, atol=1e-3))
    return Reading(
        what="survives running out", value=float(right and bool(halved)), of={"halved": len(halved)}
    )
