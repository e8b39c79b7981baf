"""From a loaded transformers model to a packed engine, where model and device allow one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from serve_app.engines.memory import Meter, measure_activations
from serve_app.engines.packed.attention import PackedAttention, flash, is_right
from serve_app.engines.packed.encoder import PackedEncoder, why_not
from serve_app.engines.packed.engine import Compile, PackedEngine
from serve_app.engines.packed.graphs import Capturing, cuda_graphs
from serve_app.engines.packed.pooling import PackedEmbedder
from serve_app.manifest import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

TEXT_TOKENS = 128  # of the texts that memory is measured with


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What may be gained beyond the plain run; by default nothing, as on a CPU."""

    graphs: Capturing | None = None
    compile: Compile | None = None


PLAIN = Tuning()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where and how to run packed."""

    device: torch.device
    attention: PackedAttention
    tuning: Tuning = PLAIN


def on_gpu() -> Target:
    """The current GPU, with its flash kernels and graphs."""
    return Target(device=torch.device("cuda"), attention=flash, tuning=Tuning(graphs=cuda_graphs()))


def packed_if_possible(
    model: PreTrainedModel, checkpoint: Checkpoint, *, head: nn.Module, target: Target, meter: Meter
) -> PackedEngine | None:
    """A packed engine that keeps within the device's memory; None where texts must be padded.

    Args:
        model: of transformers, anywhere; not usable afterwards.
        checkpoint: its facts.
        head: what follows the pooling.
        target: where to run.
        meter: of that device's memory.
    """
    reason = why_not(model)
    if reason is not None:
        log.info("texts are padded: %s", reason)
        return None
    heads, dtype = model.config.num_attention_heads, next(model.parameters()).dtype
    head_dims = model.config.hidden_size // heads
    if not is_right(target.attention, target.device, dtype, heads=heads, head_dims=head_dims):
        return None
    try:
        engine = _plain(model, checkpoint, head=head, target=target)
        text_tokens = min(TEXT_TOKENS, checkpoint.max_tokens)
        activations = measure_activations(engine, meter, text_tokens=text_tokens)
        # Not before: a replay allocates nothing that could be measured.
        _capture(engine, target.tuning)
    except Exception:  # whatever a kernel raises: the padded engine needs fewer of them
        log.warning("texts are padded: the packed engine failed its first runs", exc_info=True)
        return None
    engine.most_tokens = activations.most_tokens(meter.free_bytes(), least=checkpoint.max_tokens)
    log.info("batches of up to %d tokens fit into memory", engine.most_tokens)
    if engine.graphs:
        log.info("batches of up to %d tokens run as CUDA graphs", max(engine.graphs).tokens)
    return engine


def pack(
    model: PreTrainedModel, checkpoint: Checkpoint, *, head: nn.Module, target: Target
) -> PackedEngine:
    """The packed engine of a model that `why_not` has nothing against, its attention taken on trust."""
    engine = _plain(model, checkpoint, head=head, target=target)
    _capture(engine, target.tuning)
    return engine


def _plain(
    model: PreTrainedModel, checkpoint: Checkpoint, *, head: nn.Module, target: Target
) -> PackedEngine:
    encoder = PackedEncoder(model, attention=target.attention)
    embedder = PackedEmbedder(encoder, pooling=checkpoint.pooling, head=head)
    return PackedEngine(
        embedder,
        device=target.device,
        max_tokens=checkpoint.max_tokens,
        compile=target.tuning.compile,
    )


def _capture(engine: PackedEngine, tuning: Tuning) -> None:
    if tuning.graphs is not None:
        engine.capture(tuning.graphs)
