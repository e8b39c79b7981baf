"""Linear layers that read their input rounded as the integer engine will, for training in float.

SmoothQuant's scale first, then UInt8 per tensor; gradients pass the rounding as if it were not there
(straight-through). Scales are chosen once, from the texts given; where to_int8 folds a scale into the
value projection, its own choice differs a little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn import functional

from converters.smoothing import SCALE_FLOOR
from converters.to_int8 import DEFAULT_ALPHA
from serve_app.errors import ConversionError


class FakeQuantised(torch.nn.Module):
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


@dataclass(slots=True)
class _Observed:
    """What one linear layer reads: which activation, and its range per channel, float32 [in]."""

    activation: int
    low: torch.Tensor
    high: torch.Tensor


@contextmanager
def fake_quantised(
    model: torch.nn.Module, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> Iterator[None]:
    """Put fake-quantised layers in the place of linear ones; take them out again at the end.

    Args:
        model: a transformer.
        parts: (input_ids, attention_mask), int64 [batch, tokens], whose ranges set the scales.

    Raises:
        ConversionError: the model has no linear layers.
    """
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
            fake = FakeQuantised(linears[name], scale, min(low, 0.0), max(high, 0.0))
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
