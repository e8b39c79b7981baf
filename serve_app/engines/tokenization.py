"""Text → token ids, exactly as the checkpoint's own pipeline does it.

The library's fast tokenizer does the work, truncation and special tokens included. Token ids that a
client brings are completed here with the special tokens they lack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer

from serve_app.engines.base import TokenIds

# A batch goes through the library's threads, which costs a query that comes alone 0.1 ms; `encode` also
# works out offsets that nobody needs, which costs a long text more than that.
SHORT_CHARS = 256


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Texts as token ids, and the positions of those that had to be cut."""

    texts: list[TokenIds]
    truncated: list[int]

    @property
    def tokens(self) -> int:
        """Tokens of all texts, special tokens included."""
        return sum(map(len, self.texts))


@dataclass(frozen=True, slots=True)
class Piece:
    """One token, as a client may want to see it."""

    id: int
    text: str  # as it stands in the text; of a special token, its name
    special: bool
    start: int | None  # characters; a special token stands nowhere
    stop: int | None


class Tokenizer:
    """The tokenizer of a checkpoint, cutting at the model's limit."""

    def __init__(self, file: Path, *, max_tokens: int) -> None:
        self._file = file
        self._fast = FastTokenizer.from_file(str(file))
        self._fast.no_padding()
        self._fast.enable_truncation(max_tokens)
        self.max_tokens = max_tokens
        self.vocab_size = self._fast.get_vocab_size(with_added_tokens=True)
        self._prefix, self._suffix = self._special_tokens()

    def encode(self, texts: Sequence[str]) -> Tokenized:
        """Tokenise texts. Runs outside Python's global lock; safe to call from any thread."""
        if len(texts) == 1 and len(texts[0]) <= SHORT_CHARS:
            encodings = [self._fast.encode(texts[0], add_special_tokens=True)]
        else:
            encodings = self._fast.encode_batch_fast(list(texts), add_special_tokens=True)
        return Tokenized(
            texts=[np.array(e.ids, dtype=np.int32) for e in encodings],
            truncated=[i for i, e in enumerate(encodings) if e.overflowing],
        )

    def pieces(self, texts: Sequence[str], *, special: bool) -> list[list[Piece]]:
        """The tokens of whole texts, uncut, with or without special tokens."""
        encodings = self._uncut.encode_batch(list(texts), add_special_tokens=special)
        return [_pieces(text, found) for text, found in zip(texts, encodings, strict=True)]

    @cached_property
    def _uncut(self) -> FastTokenizer:
        fast = FastTokenizer.from_file(str(self._file))
        fast.no_padding()
        fast.no_truncation()
        return fast

    def complete(self, texts: Sequence[Sequence[int]]) -> Tokenized:
        """Token ids from a client, completed with missing special tokens and cut at the limit.

        The ids must be within `vocab_size`; the caller has checked them.
        """
        completed, truncated = [], []
        room = self.max_tokens - len(self._prefix) - len(self._suffix)
        for position, ids in enumerate(texts):
            inner = self._without_specials(list(ids))
            if len(inner) > room:
                truncated.append(position)
            whole = [*self._prefix, *inner[:room], *self._suffix]
            completed.append(np.array(whole, dtype=np.int32))
        return Tokenized(texts=completed, truncated=truncated)

    def _without_specials(self, ids: list[int]) -> list[int]:
        if self._prefix and ids[: len(self._prefix)] == self._prefix:
            ids = ids[len(self._prefix) :]
        if self._suffix and ids[-len(self._suffix) :] == self._suffix:
            ids = ids[: -len(self._suffix)]
        return ids

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a text."""
        whole: Encoding = self._fast.encode("a", add_special_tokens=True)
        bare: Encoding = self._fast.encode("a", add_special_tokens=False)
        start = next(
            i for i in range(len(whole.ids)) if whole.ids[i : i + len(bare.ids)] == bare.ids
        )
        return whole.ids[:start], whole.ids[start + len(bare.ids) :]


def _pieces(text: str, found: Encoding) -> list[Piece]:
    rows = zip(found.ids, found.tokens, found.special_tokens_mask, found.offsets, strict=True)
    return [
        Piece(token, name, special=True, start=None, stop=None)
        if special
        else Piece(token, text[start:stop], special=False, start=start, stop=stop)
        for token, name, special, (start, stop) in rows
    ]
