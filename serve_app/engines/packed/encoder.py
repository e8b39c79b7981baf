"""BERT's layers over tokens that lie end to end, from the weights of a transformers model.

Query, key and value are one product, and BERT's one token type is part of the position table; nothing
else differs from the checkpoint, which gives its modules away: there is one copy of the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from serve_app.engines.packed.attention import PackedAttention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FROM_ZERO = {"bert"}  # positions count from 0
AFTER_PADDING = {"roberta", "xlm-roberta", "camembert"}  # they count from the padding's id + 1


class Layer(nn.Module):
    """Attention and feed-forward, each with its residual and norm."""

    def __init__(self, layer: Any, *, heads: int, attention: PackedAttention) -> None:
        super().__init__()
        inner = layer.attention
        self._heads = heads
        self._attention = attention
        self.qkv = _fused(inner.self.query, inner.self.key, inner.self.value)
        self.out, self.out_norm = inner.output.dense, inner.output.LayerNorm
        self.up, self.activation = layer.intermediate.dense, layer.intermediate.intermediate_act_fn
        self.down, self.down_norm = layer.output.dense, layer.output.LayerNorm

    def forward(self, states: torch.Tensor, offsets: torch.Tensor, longest: int) -> torch.Tensor:
        tokens, dims = states.shape
        q, k, v = self.qkv(states).view(tokens, 3, self._heads, dims // self._heads).unbind(1)
        attended = self._attention(q, k, v, offsets, longest).reshape(tokens, dims)
        states = self.out_norm(self.out(attended) + states)
        result: torch.Tensor = self.down_norm(self.down(self.activation(self.up(states))) + states)
        return result


class PackedEncoder(nn.Module):
    """Token ids and positions in, token states out."""

    def __init__(self, model: PreTrainedModel, *, attention: PackedAttention) -> None:
        """Take the weights of a model that `why_not` has nothing against.

        Args:
            model: of transformers; it is not usable afterwards.
            attention: for its heads, on the device where it is to run.
        """
        super().__init__()
        embeddings, heads = model.embeddings, model.config.num_attention_heads
        self.first_position = first_position(model)
        self.words = embeddings.word_embeddings
        self.positions = _with_type(
            embeddings.position_embeddings, embeddings.token_type_embeddings
        )
        self.norm: nn.LayerNorm = embeddings.LayerNorm
        self.layers = nn.ModuleList(
            Layer(layer, heads=heads, attention=attention) for layer in model.encoder.layer
        )

    def forward(
        self, ids: torch.Tensor, positions: torch.Tensor, offsets: torch.Tensor, longest: int
    ) -> torch.Tensor:
        """Map int32 [tokens] ids and positions to states [tokens, dims]."""
        states: torch.Tensor = self.norm(self.words(ids) + self.positions(positions))
        for layer in self.layers:
            states = layer(states, offsets, longest)
        return states


def why_not(model: PreTrainedModel) -> str | None:
    """Why a transformers model cannot be packed, or None when it can."""
    config = model.config
    kind = config.model_type
    if kind not in FROM_ZERO | AFTER_PADDING:
        return f"{kind} has other layers than BERT"
    if config.is_decoder or config.add_cross_attention:
        return "it is a decoder"
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        return f"its positions are {config.position_embedding_type}"
    if len({weight.dtype for weight in model.parameters()}) > 1:
        return "its layers differ in precision"
    if any(module._forward_hooks for module in model.modules()):  # noqa: SLF001 - torch shows no other way
        return "its modules carry hooks"
    return None


def first_position(model: PreTrainedModel) -> int:
    """The position of a text's first token."""
    if model.config.model_type in FROM_ZERO:
        return 0
    return int(model.embeddings.padding_idx) + 1


@torch.no_grad()
def _fused(*linears: nn.Linear) -> nn.Linear:
    """Several products of one input as one."""
    first = linears[0]
    rows = sum(linear.out_features for linear in linears)
    fused = nn.Linear(
        first.in_features, rows, device=first.weight.device, dtype=first.weight.dtype
    ).requires_grad_(requires_grad=False)
    fused.weight.copy_(torch.cat([linear.weight for linear in linears]))
    fused.bias.copy_(torch.cat([linear.bias for linear in linears]))
    return fused


@torch.no_grad()
def _with_type(positions: nn.Embedding, types: nn.Embedding) -> nn.Embedding:
    """Each position's row with that of token type 0, the only one in use, added in FP32."""
    table = positions.weight.float() + types.weight[0].float()
    rows, dims = table.shape
    return nn.Embedding(rows, dims, _weight=table.to(positions.weight.dtype), _freeze=True)
