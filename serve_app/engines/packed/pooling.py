"""From the states of tokens that lie end to end to one unit vector a text; see `engines.pooling`."""

from __future__ import annotations

import torch
from torch import nn

from serve_app.engines.packed.encoder import PackedEncoder
from serve_app.engines.pooling import UnitLength
from serve_app.manifest import Pooling


def pool_segments(
    states: torch.Tensor,
    segments: torch.Tensor,
    offsets: torch.Tensor,
    pooling: Pooling,
) -> torch.Tensor:
    """Pool token states [tokens, dims]; segments without tokens get anything.

    Returns float32 [texts, dims], not normalised.
    """
    if pooling == "cls":
        return states[offsets[:-1].clamp(max=len(states) - 1)].float()
    if pooling == "lasttoken":
        return states[(offsets[1:] - 1).clamp(min=0)].float()
    states = states.float()
    if pooling == "max":
        texts, dims = len(offsets) - 1, states.shape[1]
        least = states.new_full((texts + 1, dims), torch.finfo(states.dtype).min)
        rows = segments.long().unsqueeze(1).expand(-1, dims)
        return least.scatter_reduce_(0, rows, states, "amax")[:texts]
    lengths = offsets.diff().clamp(min=1).unsqueeze(1).float()
    if pooling == "weightedmean":  # the n-th token counts n times
        numbers = torch.arange(1, len(states) + 1, device=states.device)
        weights = (numbers - offsets[segments]).unsqueeze(1).float()
        return _sums(states * weights, offsets) / (lengths * (lengths + 1) / 2)
    total = _sums(states, offsets)
    return total / (lengths.sqrt() if pooling == "mean_sqrt_len" else lengths)


def _sums(rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Of each segment's rows, always in the same order; on an H100 faster than atomic additions, too."""
    return torch.segment_reduce(rows, "sum", offsets=offsets, initial=0.0, unsafe=True)


class PackedEmbedder(nn.Module):
    """Encoder, pooling, head and the final unit length, as one module."""

    def __init__(
        self,
        encoder: PackedEncoder,
        *,
        pooling: Pooling,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling: Pooling = pooling
        self.head = head or nn.Sequential()
        self.unit = UnitLength()

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        segments: torch.Tensor,
        offsets: torch.Tensor,
        longest: int,
    ) -> torch.Tensor:
        """Map a batch as `layout` describes it to float32 [texts, dims]."""
        states = self.encoder(ids, positions, offsets, longest)
        vectors = pool_segments(states, segments, offsets, self.pooling)
        unit: torch.Tensor = self.unit(self.head(vectors))
        return unit
