"""From token states to one vector: sentence-transformers' poolings, in torch.

Used by the torch engine and, traced into the graph, by the ONNX export. Sums run in float32 whatever
the model's precision: a float16 sum over long texts overflows.
"""

from __future__ import annotations

import torch

from serve_app.manifest import Pooling


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Pool token states [texts, tokens, dims] under a 0/1 mask [texts, tokens], padded on the right.

    Returns float32 [texts, dims], not normalised.
    """
    states = states.float()
    weights = mask.unsqueeze(-1).to(states.dtype)
    if pooling == "mean":
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    if pooling == "max":
        return states.masked_fill(weights == 0, torch.finfo(states.dtype).min).amax(1)
    if pooling == "lasttoken":
        last = mask.to(torch.int64).sum(1) - 1  # gathered, not indexed: that exports to ONNX
        return states.gather(1, last.reshape(-1, 1, 1).expand(-1, 1, states.shape[2])).squeeze(1)
    return states[:, 0]
