"""What waits for a replica's engine: texts in order of arrival, each of some call.

Texts whose caller has gone, or whose deadline has passed, are sifted out before a batch is taken.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from serve_app.engines.base import TokenIds, Vectors
from serve_app.policy.batching import next_batch


@dataclass(eq=False, slots=True)
class WaitingCall:
    """One call on its way through the engine."""

    vectors: Vectors
    missing: int
    done: asyncio.Future[None]
    started_s: float | None = None
    dropped: list[int] = field(default_factory=list)

    def settle(self, row: int, vector: Vectors | None) -> None:
        """Take a text's vector, or None where its deadline has passed."""
        if vector is None:
            self.dropped.append(row)
            self.vectors[row] = np.nan  # no zeros: whoever takes this for a vector shall notice
        else:
            self.vectors[row] = vector
        self.missing -= 1
        if self.missing == 0 and not self.done.done():
            self.done.set_result(None)


@dataclass(eq=False, slots=True)
class Text:
    """One text of a call."""

    ids: TokenIds
    deadline_s: float
    call: WaitingCall
    row: int


@dataclass(eq=False, slots=True)
class Waiting:
    """Texts in order of arrival."""

    texts: list[Text] = field(default_factory=list)
    tokens: int = 0

    def add(self, text: Text) -> None:
        self.texts.append(text)
        self.tokens += len(text.ids)

    def sift(self, now_s: float) -> None:
        """Drop what nobody waits for: texts of callers that left or have failed, and late ones."""
        kept = []
        for text in self.texts:
            if text.call.done.done():
                continue
            if text.deadline_s <= now_s:
                text.call.settle(text.row, None)
            else:
                kept.append(text)
        if len(kept) < len(self.texts):
            self.texts = kept
            self.tokens = sum(len(t.ids) for t in kept)

    def take(self, batch_tokens: int) -> list[Text]:
        """The next batch of one text at least."""
        positions = next_batch([len(t.ids) for t in self.texts], batch_tokens)
        batch = [self.texts[i] for i in positions]
        taken = set(positions)
        self.texts = [t for i, t in enumerate(self.texts) if i not in taken]
        self.tokens -= sum(len(t.ids) for t in batch)
        return batch
