"""Tiny random encoders, and texts of mixed lengths for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serve_app.engines.base import TokenIds
from serve_app.manifest import Tokenizer, Variant

VOCABULARY = 100
MAX_TOKENS = 40
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,  # loud enough for attention to matter
}
LENGTHS = (3, 40, 1, 17, 17, 2, 29, 8)

MakeModel = Callable[..., Any]
MakeVariant = Callable[..., Variant]


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """A tiny random encoder, ever the same, by its transformers name; `changes` are of its configuration."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    def make(kind: str = "Bert", **changes: Any) -> Any:
        torch.manual_seed(0)
        beyond = 0 if kind == "Bert" else 2  # RoBERTa's positions start behind the padding's id
        given = TINY | {"max_position_embeddings": MAX_TOKENS + beyond} | changes
        config = getattr(transformers, f"{kind}Config")(**given)
        return getattr(transformers, f"{kind}Model")(config).eval()

    return make


@pytest.fixture(scope="session")
def mixed_texts() -> list[TokenIds]:
    """Texts from one token to the longest, in no order; ids 0 and 1, which models pad with, are not in them."""
    rng = np.random.default_rng(0)
    return [rng.integers(2, VOCABULARY, n).astype(np.int32) for n in LENGTHS]


@pytest.fixture
def make_variant(make_facts: Callable[..., Any]) -> MakeVariant:
    """What an engine is told of a variant, by precision; of OpenVINO, if no other runtime is named."""

    def make(precision: str, *, runtime: Any = "openvino") -> Variant:
        return Variant(
            variant=f"{runtime}-{precision}",
            runtime=runtime,
            precision=precision,
            checkpoint=make_facts(max_tokens=32),
            tokenizer=Tokenizer(digest="0" * 64, pad_id=0, vocab_size=9),
        )

    return make
