"""The same checkpoint and texts through others: sentence-transformers, and ONNX Runtime's providers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from converters.checkpoint import Checkpoint
from converters.corpus import SHORT_TEXTS_FILE
from converters.fidelity import cosines
from loadtests import gpu_checkpoint
from loadtests.gpu_bench import Bench, mixed_lengths
from loadtests.gpu_checkpoint import Probe
from loadtests.gpu_fidelity import checkpoint_engine
from loadtests.gpu_readings import Deadline, Label, Reading, Skip
from serve_app.engines.base import MODEL_FILES, open_engine
from serve_app.engines.packed.engine import PackedEngine
from serve_app.engines.tokenization import Tokenizer
from serve_app.errors import ArtifactError
from serve_app.manifest import TOKENIZER_NAME, Runtime, Variant

OURS = "packed fp16"
PEER = "sentence-transformers fp16"
TEXTS_A_CALL = 512
PEER_BATCHES = (32, 128, 512)
ONNX_BATCHES = ((1, 12), (8, 128), (128, 128))  # texts, tokens each
COMPILING_S = 60  # TensorRT's, for one range of shapes


def mixed_texts(count: int, *, max_tokens: int) -> list[str]:
    """Texts of mixed lengths, of words that questions have: about one token each."""
    words = SHORT_TEXTS_FILE.read_text(encoding="utf-8").split()
    rng = np.random.default_rng(0)
    lengths = mixed_lengths(count, max_tokens=max_tokens)
    return [" ".join(rng.choice(words, max(1, n - 2))) for n in lengths]


def sentence_transformers(bench: Bench, _: Deadline) -> Iterator[Reading]:
    """From texts to vectors, tokenising included: ours, and theirs with its best batch size."""
    if bench.checkpoint is None:
        raise Skip("no --checkpoint")
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise Skip("sentence-transformers is not installed") from error
    found = gpu_checkpoint.read(bench.checkpoint)[0]
    texts = mixed_texts(24 if bench.quick else 4096, max_tokens=found.facts.max_tokens)
    tokenizer = Tokenizer(bench.checkpoint / TOKENIZER_NAME, max_tokens=found.facts.max_tokens)
    tokens = tokenizer.encode(texts).tokens
    engine = checkpoint_engine(bench, torch.float16)
    ms = bench.median_ms(partial(_embed_texts, tokenizer, engine, texts), budget_s=5)
    yield _rate(OURS, tokens / ms * 1000)
    model = SentenceTransformer(str(bench.checkpoint), device=bench.device.type).half()
    theirs = np.asarray(model.encode(texts[:32], normalize_embeddings=True), dtype=np.float32)
    close = cosines(_embed_texts(tokenizer, engine, texts[:32]), theirs)
    yield Reading(what="agreement min", value=float(close.min()), of={"engine": PEER})
    rates = []
    for size in PEER_BATCHES[:1] if bench.quick else PEER_BATCHES:
        work = partial(model.encode, texts, batch_size=size, normalize_embeddings=True)
        rates.append(tokens / bench.median_ms(work, budget_s=5) * 1000)
        yield Reading(what="tokens/s, texts in", value=rates[-1], of={"peer batch": size})
    yield _rate(PEER, max(rates))


def _rate(engine: str, tokens_per_s: float) -> Reading:
    return Reading(what="tokens/s, texts in", value=tokens_per_s, of={"engine": engine})


def _embed_texts(tokenizer: Tokenizer, engine: PackedEngine, texts: Sequence[str]) -> np.ndarray:
    """Tokenise the next call while the device runs the last one."""
    pending, found = None, []
    for at in range(0, len(texts), TEXTS_A_CALL):
        ids = tokenizer.encode(texts[at : at + TEXTS_A_CALL]).texts
        started = engine.start(ids)
        if pending is not None:
            found.append(pending.vectors())
        pending = started
    if pending is not None:
        found.append(pending.vectors())
    return np.concatenate(found)


def onnx(bench: Bench, deadline: Deadline) -> Iterator[Reading]:
    """ONNX FP16 through CUDA with bound memory, and through TensorRT; on a CPU, its own provider."""
    if bench.checkpoint is None:
        raise Skip("no --checkpoint")
    try:
        from converters import to_tensorrt
        from serve_app.engines.onnx_engine import has_cuda
    except ImportError as error:
        raise Skip(f"{error.name} is not installed") from error
    if bench.on_gpu and not has_cuda():
        raise Skip("this onnxruntime has no CUDAExecutionProvider: onnxruntime-gpu has")
    found, probe = gpu_checkpoint.read(bench.checkpoint)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _export(found, folder)
        yield from _through(bench, "onnx", folder, found, probe)
        if not bench.on_gpu:
            return
        if reason := to_tensorrt.missing():
            raise Skip(f"onnx-tensorrt {reason}")
        if deadline.left_s < COMPILING_S:
            raise Skip("onnx-tensorrt has too little time left to compile")
        yield from _through(bench, "tensorrt", folder, found, probe)


def _export(checkpoint: Checkpoint, folder: Path) -> None:
    """The FP16 graph that `onnx-fp16` and `onnx-tensorrt` share."""
    try:
        from converters.to_onnx import export
        from converters.to_onnx_fp16 import to_fp16
    except ImportError as error:
        raise Skip(f"{error.name} is not installed") from error
    fp32 = folder / "fp32.onnx"
    model, pooling = checkpoint.load_model(), checkpoint.facts.pooling
    export(model, fp32, pooling=pooling, head=checkpoint.load_head())
    to_fp16(fp32, folder / MODEL_FILES["onnx"])


def _through(
    bench: Bench, runtime: Runtime, folder: Path, checkpoint: Checkpoint, probe: Probe
) -> Iterator[Reading]:
    """Fidelity, then speed, of one way to run the graph."""
    variant = Variant(
        variant=f"{runtime} fp16",
        runtime=runtime,
        precision="fp16",
        checkpoint=checkpoint.facts,
        tokenizer=checkpoint.tokenizer,
    )
    try:
        engine = open_engine(folder, variant, device=bench.name)
    except ArtifactError as error:
        raise Skip(error.message) from error
    labels: dict[str, Label] = {"engine": variant.variant}
    count = 8 if bench.quick else 128
    close = cosines(engine.embed(probe.texts[:count]), probe.vectors[:count])
    yield Reading(what="fidelity min", value=float(close.min()), of=labels)
    for texts, length in ONNX_BATCHES[: 1 if bench.quick else None]:
        ids = [np.ones(min(length, checkpoint.facts.max_tokens), dtype=np.int32)] * texts
        ms = bench.median_ms(partial(engine.embed, ids), budget_s=2)
        yield Reading(what="batch ms", value=ms, of=labels | {"batch": texts, "length": length})
