"""Attention over texts that lie end to end: each token sees those of its own text and no other.

The flash kernels behind `torch.nn.attention.varlen` run on NVIDIA GPUs from compute capability 8.0, in
FP16 and BF16. Whether they do on this GPU is tried, not looked up: `is_right` runs them once against
the reference, which is slow, runs anywhere, and is what the CPU's tests run.
"""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

log = logging.getLogger(__name__)

PROBE_LENGTHS = (5, 1, 17)
PROBE_ERROR = 2e-2  # of a component around 1: FP16's step there is 1e-3, BF16's 8e-3


class PackedAttention(Protocol):
    """Scaled dot-product attention within each text."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        offsets: torch.Tensor,
        longest: int,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: [tokens, heads, head dims], the last axis contiguous.
            key: alike.
            value: alike.
            offsets: int32 [texts + 1], where each text begins and the last one ends.
            longest: no text has more tokens.

        Returns:
            [tokens, heads, head dims]; tokens beyond the last text get anything.
        """
        ...


def flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    """PyTorch's kernels for varying lengths; see `PackedAttention`."""
    from torch.nn.attention.varlen import varlen_attn  # PyTorch 2.10 and later

    out = varlen_attn(query, key, value, offsets, offsets, longest, longest)
    assert isinstance(out, torch.Tensor)  # noqa: S101 - it is a pair only where one asks for more
    return out


def text_by_text(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    """The reference: one text after another, on any device; see `PackedAttention`."""
    del longest
    out = torch.zeros_like(query)
    starts: list[int] = offsets.tolist()
    for start, end in pairwise(starts):
        if start < end:
            q, k, v = (t[start:end].transpose(0, 1)[None] for t in (query, key, value))
            out[start:end] = scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)
    return out


def is_right(
    attend: PackedAttention,
    device: torch.device,
    dtype: torch.dtype,
    *,
    heads: int,
    head_dims: int,
) -> bool:
    """Whether an attention runs on a device, and agrees with the reference there."""
    try:
        error = _error(attend, device, dtype, heads=heads, head_dims=head_dims)
    except Exception as reason:  # each release of PyTorch has its own for each lack
        first_line = (str(reason).strip() or repr(reason)).splitlines()[0]
        log.warning("texts are padded: no attention for varying lengths here (%s)", first_line)
        return False
    if not error <= PROBE_ERROR:
        log.warning("texts are padded: attention for varying lengths is wrong by %.1e", error)
        return False
    return True


def _error(
    attend: PackedAttention,
    device: torch.device,
    dtype: torch.dtype,
    *,
    heads: int,
    head_dims: int,
) -> float:
    """Largest difference from the reference in FP32."""
    draw = torch.Generator().manual_seed(0)
    shape = (sum(PROBE_LENGTHS), 3, heads, head_dims)
    both = torch.randn(shape, generator=draw).to(device, dtype)
    lengths = torch.tensor([0, *PROBE_LENGTHS], dtype=torch.int32, device=device)
    offsets = lengths.cumsum(0, dtype=torch.int32)
    q, k, v = both.unbind(1)
    found = attend(q, k, v, offsets, max(PROBE_LENGTHS))
    expected = text_by_text(q.float(), k.float(), v.float(), offsets, max(PROBE_LENGTHS))
    return float((found.float() - expected).abs().max())
