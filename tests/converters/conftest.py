"""A whole sentence-transformers folder around a tiny random BERT, and texts for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, *(f"w{i}" for i in range(96))]
MAX_TOKENS = 24
TINY_BERT = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": MAX_TOKENS,
    "initializer_range": 0.1,
}

MakeBert = Callable[..., Any]
Change = Callable[[Any], None]
MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_texts() -> list[str]:
    """Sixty texts of 1 to 30 words, some longer than the model reads."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS[len(SPECIAL) :], rng.integers(1, 31))) for _ in range(60)]


@pytest.fixture(scope="session")
def make_bert() -> MakeBert:
    """A tiny random BERT, ever the same; `changes` are of its configuration."""
    torch = pytest.importorskip("torch", reason="torch is not installed: nothing can be converted")
    transformers = pytest.importorskip("transformers")

    def make(**changes: Any) -> Any:
        torch.manual_seed(0)
        config = transformers.BertConfig(**TINY_BERT | changes)
        return transformers.BertModel(config).eval()

    return make


@pytest.fixture(scope="session")
def make_checkpoint(
    make_bert: MakeBert, tmp_path_factory: pytest.TempPathFactory
) -> MakeCheckpoint:
    """Write a checkpoint folder; `change` may tamper with the model first."""
    torch = pytest.importorskip("torch")

    def make(change: Change | None = None) -> Path:
        model = make_bert()
        if change is not None:
            with torch.no_grad():
                change(model)
        folder = tmp_path_factory.mktemp("checkpoint")
        model.save_pretrained(folder)
        _write_tokenizer(folder / "tokenizer.json")
        modules = [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {
                "idx": 1,
                "name": "1",
                "path": "1_Pooling",
                "type": "sentence_transformers.models.Pooling",
            },
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    """The folder of an untampered tiny model; do not change it."""
    return make_checkpoint()


def _write_tokenizer(file: Path) -> None:
    tokenizer = FastTokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, SPECIAL[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(file))
