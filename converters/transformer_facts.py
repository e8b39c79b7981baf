"""What a transformers folder says of itself: how wide, how long, and whether its tokenizer fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer as FastTokenizer

from converters.modules_json import read_json
from serve_app.errors import ConversionError
from serve_app.manifest import TOKENIZER_NAME, Tokenizer, sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# RoBERTa and its kin number positions from pad_token_id + 1, so that many have no embedding.
OFFSET_POSITIONS = frozenset(
    {"camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta"}
    | {"roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"}
)
UNSTATED_TOKENS = 1_000_000  # tokenizers without a limit state 1e30


def read_config(folder: Path, *, trust_remote_code: bool) -> PreTrainedConfig:
    """The configuration with transformers' defaults, of a composite model its text part.

    Raises:
        ConversionError: it is broken, or its model needs code of its own or a newer transformers.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    stated = read_json(folder / "config.json")
    model_type = stated.get("model_type")
    if model_type not in CONFIG_MAPPING and not trust_remote_code:
        way_out = (
            "it brings code of its own; if you trust that code, add --trust-remote-code"
            if "auto_map" in stated
            else "a newer one may know it"
        )
        raise ConversionError(
            f"{folder}: transformers {__version__} does not know the model type {model_type!r}; "
            f"{way_out}"
        )
    try:
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=not trust_remote_code
        )
    except Exception as error:  # values are checked by each configuration class in its own way
        raise ConversionError(f"{folder}/config.json: {first_line(error)}") from error
    text: PreTrainedConfig = config.get_text_config()
    return text


def max_tokens(folder: Path, config: PreTrainedConfig) -> int:
    """Longest text in tokens, specials included, that is stated for the folder and fits the model.

    Raises:
        ConversionError: nothing states a limit.
    """
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in OFFSET_POSITIONS:
        positions -= config.pad_token_id + 1
    stated = _stated(folder / "sentence_bert_config.json", "max_seq_length")
    stated = stated or _stated(folder / "tokenizer_config.json", "model_max_length")
    limits = [limit for limit in (stated, positions) if limit is not None and limit > 0]
    if not limits:
        raise ConversionError(
            f"{folder}: no limit of tokens is stated; write it to sentence_bert_config.json as "
            '{"max_seq_length": 512}'
        )
    return min(limits)


def tokenizer_facts(folder: Path, config: PreTrainedConfig) -> Tokenizer:
    """What manifests say of the tokenizer.

    Raises:
        ConversionError: it cannot be read, or does not belong to the model.
    """
    file = folder / TOKENIZER_NAME
    try:
        fast = FastTokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ConversionError(f"{file}: cannot be read as a tokenizer ({error})") from error
    vocab_size = fast.get_vocab_size(with_added_tokens=True)
    ids = 1 + max(fast.get_vocab(with_added_tokens=True).values(), default=-1)
    if max(ids, vocab_size) > config.vocab_size:
        raise ConversionError(
            f"{file}: {max(ids, vocab_size)} tokens, but the model has {config.vocab_size}: "
            "the tokenizer does not belong to this model"
        )
    _require_lower_case(folder, fast)
    pad_id = config.pad_token_id
    return Tokenizer(
        digest=sha256_of(file),
        pad_id=pad_id if isinstance(pad_id, int) and pad_id >= 0 else 0,  # the mask hides it
        vocab_size=vocab_size,
    )


def first_line(error: Exception) -> str:
    """An error of a library, fit for one of ours."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _stated(file: Path, key: str) -> int | None:
    value = read_json(file).get(key) if file.exists() else None
    return int(value) if isinstance(value, int | float) and 0 < value < UNSTATED_TOKENS else None


def _require_lower_case(folder: Path, fast: FastTokenizer) -> None:
    """sentence-transformers can lower-case texts before a tokenizer; here the tokenizer has to."""
    file = folder / "sentence_bert_config.json"
    if not file.exists() or not read_json(file).get("do_lower_case"):
        return
    normalizer = json.loads(fast.to_str())["normalizer"]
    if normalizer is None or fast.normalizer.normalize_str("A") != "a":
        raise ConversionError(
            f"{file}: do_lower_case is set, but {TOKENIZER_NAME} keeps upper case; add a Lowercase "
            "normalizer to it"
        )
