"""What the GPU sections share: the device, models of known shapes, engines of each kind, and a clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from serve_app.engines.base import Device, Engine, TokenIds
from serve_app.engines.mixed_precision import autocasting
from serve_app.engines.packed.attention import flash, text_by_text
from serve_app.engines.packed.engine import PackedEngine
from serve_app.engines.packed.graphs import cuda_graphs
from serve_app.engines.packed.opening import PLAIN, Target, Tuning, pack
from serve_app.engines.torch_engine import TorchEngine
from serve_app.manifest import Checkpoint, Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WARM_UPS = 2
LEAST_RUNS, MOST_RUNS = 3, 200
VOCABULARY = 30_522


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A BERT's sizes."""

    name: str
    layers: int
    dims: int
    heads: int
    max_tokens: int = 512

    def flops(self, lengths: Sequence[int]) -> float:
        """Multiplications and additions of one batch.

        24 dims² a token and layer, and attention's 4 dims for each pair of tokens of a text.
        """
        linear = 24 * self.dims**2 * sum(lengths)
        attention = 4 * self.dims * sum(n * n for n in lengths)
        return float(self.layers * (linear + attention))


MINILM = Shape(name="MiniLM", layers=6, dims=384, heads=12)
BASE = Shape(name="BERT-base", layers=12, dims=768, heads=12)
LARGE = Shape(name="BERT-large", layers=24, dims=1024, heads=16)
TINY = Shape(name="tiny", layers=2, dims=64, heads=2, max_tokens=64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where and how much to measure."""

    device: torch.device
    quick: bool  # tiny shapes and few runs: a smoke test, whose numbers mean nothing
    checkpoint: Path | None  # a folder that `gpu_checkpoint.prepare` wrote

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> Device:
        """Of the device."""
        return "cuda" if self.on_gpu else "cpu"

    @property
    def small(self) -> Shape:
        """The shape whose speed stands for the default checkpoint's."""
        return TINY if self.quick else MINILM

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return (TINY,) if self.quick else (MINILM, BASE, LARGE)

    def target(self, tuning: Tuning | None = None) -> Target:
        """Where engines run: as they are served, or tuned in another way."""
        attention = flash if self.on_gpu else text_by_text
        return Target(device=self.device, attention=attention, tuning=tuning or self.graphs)

    @property
    def graphs(self) -> Tuning:
        return Tuning(graphs=cuda_graphs()) if self.on_gpu else PLAIN

    def sync(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def model(self, shape: Shape, dtype: torch.dtype) -> PreTrainedModel:
        """Random weights, always the same, made where they will run: speed does not depend on them."""
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=shape.dims,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=4 * shape.dims,
            max_position_embeddings=shape.max_tokens,
        )
        torch.manual_seed(0)
        with self.device:
            return BertModel(config, add_pooling_layer=False).eval().to(dtype)

    def packed(
        self,
        shape: Shape,
        dtype: torch.dtype = torch.float16,
        *,
        tuning: Tuning | None = None,
    ) -> PackedEngine:
        """The engine without padding."""
        head = torch.nn.Sequential()
        model = self.model(shape, dtype)
        return pack(model, facts(shape), head=head, target=self.target(tuning))

    def padded(self, shape: Shape, dtype: torch.dtype, *, autocast: bool = False) -> Engine:
        """Transformers' own modules with padding."""
        model: torch.nn.Module = self.model(shape, dtype)
        if autocast:
            model = autocasting(model, torch.float16)
        return TorchEngine(model, pooling="mean", pad_id=0, device=self.name)

    def times_ms(self, work: Callable[[], object], *, budget_s: float) -> list[float]:
        """Times of one piece of work, each with the device idle before and after; warm-ups left out."""
        for _ in range(WARM_UPS):
            work()
        self.sync()
        times_ms: list[float] = []
        end_s = time.perf_counter() + (0.2 if self.quick else budget_s)
        while len(times_ms) < LEAST_RUNS or (
            len(times_ms) < MOST_RUNS and time.perf_counter() < end_s
        ):
            started_s = time.perf_counter()
            work()
            self.sync()
            times_ms.append((time.perf_counter() - started_s) * 1000)
        return times_ms

    def median_ms(self, work: Callable[[], object], *, budget_s: float) -> float:
        return float(np.median(self.times_ms(work, budget_s=budget_s)))


def facts(shape: Shape) -> Checkpoint:
    """What a manifest would say of random weights."""
    return Checkpoint(
        name=shape.name,
        digest="",
        dims=shape.dims,
        max_tokens=shape.max_tokens,
        pooling="mean",
        head=(),
        prompts=Prompts(query="", document="", default=""),
        matryoshka_dims=(),
    )


def texts_of(lengths: Sequence[int], *, seed: int = 0) -> list[TokenIds]:
    """Random token ids."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1000, VOCABULARY, n).astype(np.int32) for n in lengths]


def mixed_lengths(count: int, *, max_tokens: int, seed: int = 0) -> list[int]:
    """60 % sentences, 30 % paragraphs and 10 % long texts, in no order."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(3, count, p=(0.6, 0.3, 0.1))
    least, most = np.array([6, 40, 160])[kinds], np.array([28, 140, 512])[kinds]
    return [int(n) for n in np.minimum(rng.integers(least, most), max_tokens)]


def pipelined(engine: PackedEngine, batches: Sequence[Sequence[TokenIds]]) -> None:
    """Batch after batch, the next one started before the last one's vectors are fetched."""
    pending = None
    for batch in batches:
        started = engine.start(batch)
        if pending is not None:
            pending.vectors()
        pending = started
    if pending is not None:
        pending.vectors()
