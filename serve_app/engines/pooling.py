"""From token states to one unit vector: sentence-transformers' poolings and heads, in torch.

Used by the torch engine and, traced into the graph, by the ONNX export. Sums and heads run in
float32 whatever the model's precision: a float16 sum over long texts overflows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from serve_app.manifest import HeadStep, Pooling

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
}


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Pool token states [texts, tokens, dims] under a 0/1 mask [texts, tokens], padded on the right.

    Returns float32 [texts, dims], not normalised.
    """
    states = states.float()
    weights = mask.unsqueeze(-1).to(states.dtype)
    if pooling == "mean":
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    if pooling == "mean_sqrt_len":
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9).sqrt()
    if pooling == "weightedmean":  # the n-th token counts n times (Muennighoff 2022, eq. 1)
        weights = weights * weights.cumsum(1)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    if pooling == "max":
        return states.masked_fill(weights == 0, torch.finfo(states.dtype).min).amax(1)
    if pooling == "lasttoken":
        last = mask.to(torch.int64).sum(1) - 1  # gathered, not indexed: that exports to ONNX
        return states.gather(1, last.reshape(-1, 1, 1).expand(-1, 1, states.shape[2])).squeeze(1)
    return states[:, 0]


class UnitLength(nn.Module):
    """Scales vectors [texts, dims] to length 1."""

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(vectors, dim=-1)


class Truncate(nn.Module):
    """Keeps the first `dims` components."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors[:, : self.dims]


def make_head(
    steps: Sequence[HeadStep], *, dims: int, weights: Mapping[str, torch.Tensor]
) -> nn.Sequential:
    """The steps between pooling and the final unit length, as one module.

    Args:
        steps: what is done, in order.
        dims: components of the finished vector.
        weights: of each "dense" step, by its position: `0.weight` [out, in], and `0.bias` [out] if
            it has one.

    Raises:
        KeyError: a dense step has no weight.
    """
    modules: list[nn.Module] = []
    for position, step in enumerate(steps):
        if step == "dense":
            outputs, inputs = weights[f"{position}.weight"].shape
            modules.append(nn.Linear(inputs, outputs, bias=f"{position}.bias" in weights))
        elif step == "normalize":
            modules.append(UnitLength())
        elif step == "truncate":
            modules.append(Truncate(dims))
        else:
            modules.append(ACTIVATIONS[step]())
    head = nn.Sequential(*modules)
    head.load_state_dict(dict(weights))
    return head.float()


class SentenceEmbedder(nn.Module):
    """A transformer, pooling, head and the final unit length, as one module."""

    def __init__(
        self, model: nn.Module, *, pooling: Pooling, head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.pooling: Pooling = pooling
        self.head = head or nn.Sequential()
        self.unit = UnitLength()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Map int64 [texts, tokens] ids and mask to float32 [texts, dims]."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        vectors = pool(output.last_hidden_state, attention_mask, self.pooling)
        unit: torch.Tensor = self.unit(self.head(vectors))
        return unit
