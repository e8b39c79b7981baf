"""A model's packed engine and its padded one, in FP32 on the CPU; they need torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from serve_app.engines.packed import opening
from serve_app.engines.packed.attention import text_by_text
from serve_app.engines.packed.engine import PackedEngine
from serve_app.engines.packed.graphs import FAMILIES, Capture, Capturing
from serve_app.engines.torch_engine import TorchEngine
from serve_app.manifest import Pooling

SMALL_TOKENS = 512  # of graphs: larger ones take long on a CPU
CPU = torch.device("cpu")
HERE = opening.Target(device=CPU, attention=text_by_text)
MAX_TOKENS = 40
SMALL = tuple([room for room in family if room.tokens <= SMALL_TOKENS] for family in FAMILIES[:2])


def packed_engine(
    model: Any,
    facts: Any,
    *,
    capture: Capture | None = None,
    compile: Any = None,  # noqa: A002
) -> PackedEngine:
    graphs = capture and Capturing(capture=capture, families=SMALL)
    return opening.pack(
        model,
        facts,
        head=torch.nn.Sequential(),
        target=replace(HERE, tuning=opening.Tuning(graphs=graphs, compile=compile)),
    )


def padded_engine(model: Any, pooling: Pooling = "mean") -> TorchEngine:
    pad_id = model.config.pad_token_id
    return TorchEngine(model, pooling=pooling, pad_id=pad_id, device="cpu")


def tiny_facts(make_facts: Any, pooling: Pooling = "mean") -> Any:
    return make_facts(dims=32, max_tokens=MAX_TOKENS, pooling=pooling)
