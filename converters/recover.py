"""Quantisation-aware recovery: a few minutes in which the INT8 model learns from its FP32 self.

Every linear layer reads its input as the integer engine will: after SmoothQuant's scale, rounded to
UInt8 per tensor; gradients pass the rounding as if it were not there (straight-through). The teacher
is the untouched model, so texts need no labels:

    loss = mean(1 - cos(vectors)) + STATES_WEIGHT * |states - teacher's|^2 / |teacher's|^2

Only biases and norms learn, to make good what rounding the inputs does. Rounding the weights is left
to GPTQ, afterwards: a student that rounded its weights to the nearest, and learned all of them, ended
farther from FP32 than plain GPTQ (held-out mean 1 - cos .00162 to .00143; this way .00134).

What comes out is a float model, exported and quantised like any, and kept only where held-out texts
come closer to FP32 than without it. Scales are chosen once, before training; where to_int8 folds a
scale into the value projection, its own choice differs a little.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from converters.checkpoint import Checkpoint
from converters.smoothing import SCALE_FLOOR
from converters.to_int8 import DEFAULT_ALPHA, TokenBatch, distance, quantize_static, split
from converters.to_onnx import export
from serve_app.engines.pooling import pool
from serve_app.errors import ConversionError
from serve_app.manifest import Pooling

LEARNING_RATE = 1e-4  # falls to zero over the minutes
STATES_WEIGHT = 1.0
MAX_BATCH_TOKENS = 512  # padded; more steps in the same minutes teach more than larger ones
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """What a recovery did."""

    steps: int
    texts: int
    first_loss: float
    last_loss: float  # means over the first and the last tenth of the steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What the manifest tells of a recovery, and where the artifact without it lies."""

    plain: Path
    minutes: float
    texts: int


def recover(
    checkpoint: Checkpoint,
    int8_file: Path,
    *,
    fp32_file: Path,
    batches: Sequence[TokenBatch],
    minutes: float,
) -> Recovery:
    """Replace an INT8 graph by a recovered one, if that is closer to FP32 on held-out texts.

    Args:
        checkpoint: the source.
        int8_file: the graph quantised without recovery.
        fp32_file: the graph it was made from.
        batches: unlabelled texts; every fourth judges and is not learned from.
        minutes: of training.

    Raises:
        ConversionError: see `distil`.
    """
    plain = int8_file.parent.with_name(f"{int8_file.parent.name}.plain")
    plain.mkdir()
    shutil.copyfile(int8_file, plain / int8_file.name)
    learn, judge = split(batches)
    model, pooling = checkpoint.load_model(), checkpoint.facts.pooling
    distilled = distil(model, learn or batches, pooling=pooling, minutes=minutes)
    recovered_fp32, recovered = plain / "recovered_fp32.onnx", plain / "recovered.onnx"
    export(model, recovered_fp32, pooling=pooling, head=checkpoint.load_head())
    quantize_static(recovered_fp32, recovered, batches=batches, reference_file=fp32_file)
    if distance(fp32_file, recovered, judge) < distance(fp32_file, int8_file, judge):
        recovered.replace(int8_file)
    return Recovery(plain=plain, minutes=minutes, texts=distilled.texts)


class _FakeQuantised(torch.nn.Module):
    """A linear layer that reads what the integer one will, and whose gradient does not notice."""

    scale: torch.Tensor  # float32 [in]

    def __init__(
        self, linear: torch.nn.Linear, scale: torch.Tensor, low: float, high: float
    ) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("scale", scale, persistent=False)
        self.step = max((high - low) / 255, SCALE_FLOOR)
        self.zero = round(-low / self.step)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        smooth = values / self.scale
        levels = (smooth / self.step + self.zero).clamp(0, 255)  # no gradient beyond the range
        rounded = (_round(levels) - self.zero) * self.step
        return functional.linear(rounded * self.scale, self.linear.weight, self.linear.bias)


def _round(values: torch.Tensor) -> torch.Tensor:
    return values + (values.round() - values).detach()


def distil(
    model: torch.nn.Module, batches: Sequence[TokenBatch], *, pooling: Pooling, minutes: float
) -> Distilled:
    """Train `model` in place so that its INT8 form comes close to what `model` was.

    Args:
        model: a transformer in FP32; its matrices stay as they are.
        batches: (input_ids, attention_mask), int64 [batch, tokens], of unlabelled texts.
        pooling: how token states become a vector.
        minutes: of wall-clock time for the training; at least one step is made.

    Raises:
        ConversionError: the model has no linear layers, or training diverged.
    """
    parts = [part for batch in batches for part in _small(batch)]
    teacher = copy.deepcopy(model).eval()
    with _fake_quantised(model, parts):
        return _train(model, teacher, parts, pooling=pooling, seconds=minutes * 60)


def _train(
    model: torch.nn.Module,
    teacher: torch.nn.Module,
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]],
    *,
    pooling: Pooling,
    seconds: float,
) -> Distilled:
    trained = _trained_parameters(model)
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)
    rng = np.random.default_rng(SEED)
    order: list[int] = []
    losses: list[float] = []
    started_s = time.monotonic()
    while (spent := (time.monotonic() - started_s) / seconds) < 1 or not losses:
        order = order or rng.permutation(len(parts)).tolist()
        ids, mask = parts[order.pop()]
        with torch.no_grad():
            wanted = teacher(input_ids=ids, attention_mask=mask).last_hidden_state
        found = model(input_ids=ids, attention_mask=mask).last_hidden_state
        loss = _loss(found, wanted, mask, pooling=pooling)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * max(0.0, 1 - spent)
        optimizer.step()
        losses.append(loss.item())
    if not np.isfinite(losses).all():
        raise ConversionError("recovery diverged: build without --recover")
    once = max(1, min(len(parts), len(losses) // 2))  # one pass over the texts, if there were two
    return Distilled(
        steps=len(losses),
        texts=sum(len(ids) for ids, _ in parts),
        first_loss=float(np.mean(losses[:once])),
        last_loss=float(np.mean(losses[-once:])),
    )


def _loss(
    found: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor, *, pooling: Pooling
) -> torch.Tensor:
    apart = 1 - functional.cosine_similarity(
        pool(found, mask, pooling), pool(wanted, mask, pooling)
    )
    real = mask > 0
    states = (found - wanted)[real].square().sum() / wanted[real].square().sum()
    return apart.mean() + STATES_WEIGHT * states


def _trained_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Biases and norms, all the parameters of one dimension."""
    return [weight for weight in model.parameters() if weight.ndim == 1]


def _small(batch: TokenBatch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    ids, mask = batch
    rows = max(1, MAX_BATCH_TOKENS // ids.shape[1])
    for start in range(0, len(ids), rows):
        real = mask[start : start + rows]
        longest = int(real.sum(axis=1).max())
        part = ids[start : start + rows, :longest]
        yield torch.from_numpy(part), torch.from_numpy(real[:, :longest])


@dataclass(slots=True)
class _Observed:
    """What one linear layer reads: which activation, and its range per channel, float32 [in]."""

    activation: int
    low: torch.Tensor
    high: torch.Tensor


@contextmanager
def _fake_quantised(
    model: torch.nn.Module, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> Iterator[None]:
    """Put fake-quantised layers in the place of linear ones; take them out again at the end."""
    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    observed = _observe(model, linears, parts)
    if not observed:
        raise ConversionError("the model has no linear layers to recover")
    groups: dict[int, list[str]] = {}
    for name, seen in observed.items():
        groups.setdefault(seen.activation, []).append(name)
    for names in groups.values():
        seen = observed[names[0]]
        loudest = torch.maximum(seen.low.abs(), seen.high.abs())
        widest = torch.stack([linears[n].weight.detach().abs().amax(0) for n in names]).amax(0)
        shared = widest.clamp(min=SCALE_FLOOR) ** (1 - DEFAULT_ALPHA)
        scale = (loudest**DEFAULT_ALPHA / shared).clamp(min=SCALE_FLOOR)
        low, high = float((seen.low / scale).min()), float((seen.high / scale).max())
        for name in names:
            fake = _FakeQuantised(linears[name], scale, min(low, 0.0), max(high, 0.0))
            model.set_submodule(name, fake)
    try:
        yield
    finally:
        for name in observed:
            model.set_submodule(name, linears[name])


@torch.no_grad()
def _observe(
    model: torch.nn.Module,
    linears: dict[str, torch.nn.Linear],
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> dict[str, _Observed]:
    """Ranges over real tokens; layers that are handed the very same tensor share an activation."""
    observed: dict[str, _Observed] = {}
    first_reader: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # so that no tensor of this pass reuses another's id
    real = torch.empty(0, dtype=torch.bool)

    def look(name: str, values: torch.Tensor) -> None:
        alive.append(values)
        group = first_reader.setdefault(id(values), len(first_reader))
        rows = values.reshape(-1, values.shape[-1])
        rows = rows[real.reshape(-1)] if len(rows) == real.numel() else rows
        low, high = rows.amin(0), rows.amax(0)
        known = observed.get(name)
        if known is not None:
            low, high = torch.minimum(low, known.low), torch.maximum(high, known.high)
        observed[name] = _Observed(known.activation if known else group, low, high)

    hooks = [
        linear.register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs[0]))
        for name, linear in linears.items()
    ]
    try:
        for ids, mask in parts:
            real = mask > 0
            model(input_ids=ids, attention_mask=mask)
            alive.clear()
            first_reader.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return observed
