"""How fast, and of what: the device's own ceilings first, then engines as shares of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from loadtests.gpu_bench import Bench, Shape, mixed_lengths, pipelined, texts_of
from loadtests.gpu_fidelity import checkpoint_engine
from loadtests.gpu_readings import Deadline, Label, Reading, Skip
from serve_app.engines.base import Engine, TokenIds
from serve_app.engines.memory import release_cached
from serve_app.engines.packed.engine import PackedEngine, compiled
from serve_app.engines.packed.opening import PLAIN, Tuning

HALVES = (torch.float16, torch.bfloat16)
LENGTHS, BATCHES = (512, 128, 32, 8), (256, 64, 8, 1)
MOST_TOKENS, PIPELINE = 131_072, 4
A_CELL_S = 0.8
COMPILING_S = 30.0
RUN_BATCHES = ((1, 12), (8, 32), (64, 12), (8, 128), (32, 70), (1024, 12), (128, 128))
MIB = 2**20


def ceilings(bench: Bench, _: Deadline) -> Iterator[Reading]:
    """A large product of random numbers, and a large copy, reads and writes counted."""
    size = 256 if bench.quick else 8192
    for dtype in HALVES:
        a, b = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
        ms = bench.median_ms(partial(torch.matmul, a, b), budget_s=A_CELL_S)
        yield Reading(
            what="matmul TFLOP/s",
            value=2 * size**3 / ms / 1e9,
            of={"dtype": str(dtype).removeprefix("torch."), "size": size},
        )
    source = torch.randn(2**16 if bench.quick else 2**29, device=bench.device)
    target = torch.empty_like(source)
    ms = bench.median_ms(partial(target.copy_, source), budget_s=A_CELL_S)
    yield Reading(what="copy GB/s", value=2 * source.nbytes / ms / 1e6)


def grid(bench: Bench, _: Deadline) -> Iterator[Reading]:
    """Tokens a second over length and batch, large batches of long texts first: they are the targets."""
    lengths, batches = ((16, 4), (8, 1)) if bench.quick else (LENGTHS, BATCHES)
    for shape in reversed(bench.shapes):
        engine = bench.packed(shape)
        for length in lengths:
            for count in batches:
                if length * count <= MOST_TOKENS:
                    texts = texts_of([length] * count)
                    labels: dict[str, Label] = {
                        "shape": shape.name,
                        "length": length,
                        "batch": count,
                    }
                    yield from _rates(bench, engine, shape, texts, labels)
        del engine


def _rates(
    bench: Bench,
    engine: PackedEngine,
    shape: Shape,
    texts: Sequence[TokenIds],
    labels: dict[str, Label],
) -> Iterator[Reading]:
    """Of calls that overlap as in a busy replica."""
    work = [texts] * PIPELINE
    ms = bench.median_ms(partial(pipelined, engine, work), budget_s=A_CELL_S) / PIPELINE
    lengths = [*map(len, texts)]
    yield Reading(what="tokens/s", value=sum(lengths) / ms * 1000, of=labels)
    yield Reading(what="engine TFLOP/s", value=shape.flops(lengths) / ms / 1e9, of=labels)


def precisions(bench: Bench, _: Deadline) -> Iterator[Reading]:
    """FP32, autocast and half precisions of one shape and batch, padded and packed."""
    for shape in bench.shapes:
        texts = texts_of([min(128, shape.max_tokens)] * (4 if bench.quick else 128))
        engines: dict[str, Callable[[], Engine]] = {
            "padded fp32": partial(bench.padded, shape, torch.float32),
            "packed fp16": partial(bench.packed, shape),
            "padded autocast fp16": partial(bench.padded, shape, torch.float32, autocast=True),
            "padded fp16": partial(bench.padded, shape, torch.float16),
            "packed bf16": partial(bench.packed, shape, torch.bfloat16),
        }
        for name, make in engines.items():
            engine = make()
            ms = bench.median_ms(partial(engine.embed, texts), budget_s=A_CELL_S)
            tokens_per_s = sum(map(len, texts)) / ms * 1000
            yield Reading(
                what="tokens/s", value=tokens_per_s, of={"shape": shape.name, "engine": name}
            )
            del engine


def padding(bench: Bench, _: Deadline) -> Iterator[Reading]:
    """Texts of mixed lengths: padded in the order they come, padded by length, and packed."""
    for shape in bench.shapes:
        count, size = (16, 4) if bench.quick else (1024, 64)
        texts = texts_of(mixed_lengths(count, max_tokens=shape.max_tokens))
        tokens = sum(map(len, texts))
        for name, order in (("as they come", texts), ("by length", sorted(texts, key=len))):
            engine = bench.padded(shape, torch.float16)
            parts = [order[at : at + size] for at in range(0, count, size)]
            ms = bench.median_ms(partial(_one_by_one, engine, parts), budget_s=A_CELL_S)
            yield _mixed(tokens / ms * 1000, shape, f"padded fp16 {name}")
        packed = bench.packed(shape)
        parts = [texts[at : at + 4 * size] for at in range(0, count, 4 * size)]
        ms = bench.median_ms(partial(pipelined, packed, parts), budget_s=A_CELL_S)
        yield _mixed(tokens / ms * 1000, shape, "packed fp16")


def _one_by_one(engine: Engine, batches: Sequence[Sequence[TokenIds]]) -> None:
    for batch in batches:
        engine.embed(batch)


def _mixed(tokens_per_s: float, shape: Shape, engine: str) -> Reading:
    return Reading(
        what="tokens/s, mixed", value=tokens_per_s, of={"shape": shape.name, "engine": engine}
    )


def single(bench: Bench, _: Deadline) -> Iterator[Reading]:
    """One short text through the engine, with and without graphs; the real checkpoint where it is here."""
    for name, graphs in (("graphs", True), ("eager", False)):
        if graphs and not bench.on_gpu:
            continue
        if bench.checkpoint is None:
            engine = bench.packed(bench.small, tuning=None if graphs else PLAIN)
        else:
            engine = checkpoint_engine(bench, torch.float16, graphs=graphs)
        (text,) = texts_of([12])
        text = text % 100 if bench.quick else text
        times_ms = bench.times_ms(partial(engine.embed, [text]), budget_s=4)
        for percentile in (50, 99):
            yield Reading(
                what=f"single text p{percentile} ms",
                value=float(np.percentile(times_ms, percentile)),
                of={"engine": f"packed fp16 {name}", "tokens": 12, "runs": len(times_ms)},
            )


def runs(bench: Bench, deadline: Deadline) -> Iterator[Reading]:
    """Eager, captured and compiled, in small batches and in one that fills the device."""
    if not bench.on_gpu:
        raise Skip("CUDA graphs and the compiled form are for GPUs")
    ways: dict[str, Callable[[], Tuning]] = {
        "eager": lambda: PLAIN,
        "graphs": lambda: bench.graphs,
        "compiled": lambda: Tuning(compile=compiled),
        "compiled graphs": lambda: replace(bench.graphs, compile=compiled),
    }
    for shape in bench.shapes:
        for name, tuning in ways.items():
            if deadline.left_s < (COMPILING_S if "compiled" in name else 5):
                continue
            yield from _batches(bench, shape, name, tuning())


def _batches(bench: Bench, shape: Shape, name: str, tuning: Tuning) -> Iterator[Reading]:
    """Times of an engine's batches, and what its graphs take."""
    labels: dict[str, Label] = {"shape": shape.name, "run": name}
    before, started_s = _reserved_bytes(), time.perf_counter()
    engine = bench.packed(shape, tuning=tuning)
    yield Reading(what="open s", value=time.perf_counter() - started_s, of=labels)
    taken = (_reserved_bytes() - before) / MIB
    yield Reading(what="reserved MiB", value=taken, of=labels)
    largest = max((room.tokens for room in engine.graphs), default=0)
    yield Reading(what="largest graph's tokens", value=largest, of=labels)
    for count, length in RUN_BATCHES:
        texts = texts_of([length] * count)
        ms = bench.median_ms(partial(engine.embed, texts), budget_s=0.5)
        yield Reading(what="batch ms", value=ms, of=labels | {"batch": count, "length": length})


def _reserved_bytes() -> int:
    release_cached()
    return int(torch.cuda.memory_reserved())
