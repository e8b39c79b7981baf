"""What is asked: one query, one passage, or 32 mixed texts a request. The same for whoever draws them."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from loadtests.workload import LENGTHS, SHORT_TEXTS_FILE, Texts

Encoding = Literal["base64", "float"]
CountTokens = Callable[[str], int]

QUERY, PASSAGE, MIXED = "query", "passage", "mixed32"
NAMES = (QUERY, PASSAGE, MIXED)
SINGLE_REQUESTS, MIXED_REQUESTS, MIXED_TEXTS = 200, 40, 32
LONG_TOKENS = (
    256  # the model's limit: what is longer, servers with another limit would not cut alike
)
SEED = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests, each of so many texts, to be sent over and over."""

    name: str
    requests: tuple[tuple[str, ...], ...]

    def texts(self, most: int) -> list[str]:
        """The first texts, over all requests."""
        return list(itertools.islice(itertools.chain.from_iterable(self.requests), most))

    def bodies(self, ask: Ask) -> list[tuple[str, int]]:
        """The requests' bodies as JSON, with the number of texts in each."""
        return [(ask.body(texts), len(texts)) for texts in self.requests]


@dataclass(frozen=True, slots=True)
class Ask:
    """How a row asks: further fields of the body, and the encoding of vectors."""

    fields: Mapping[str, str] = field(default_factory=dict)
    encoding: Encoding | None = "base64"  # None: the server knows no such field

    def body(self, texts: Sequence[str]) -> str:
        """A body in OpenAI's shape."""
        content: dict[str, object] = {"input": texts[0] if len(texts) == 1 else list(texts)}
        if self.encoding is not None:
            content["encoding_format"] = self.encoding
        return json.dumps(content | dict(self.fields), ensure_ascii=False)


def workloads(count_tokens: CountTokens) -> dict[str, Workload]:
    """All three by name, of the project's own texts; long ones as near to 256 tokens as they come."""
    built_in = Texts.built_in()
    queries, passages, longs = built_in.pools
    texts = Texts((queries, passages, _lengthened(longs, count_tokens)), tuple(LENGTHS.values()))
    rng = random.Random(SEED)  # noqa: S311
    mixed = tuple(tuple(texts.draw(rng, MIXED_TEXTS)) for _ in range(MIXED_REQUESTS))
    found = (
        Workload(QUERY, tuple((text,) for text in queries[:SINGLE_REQUESTS])),
        Workload(PASSAGE, tuple((text,) for text in passages[:SINGLE_REQUESTS])),
        Workload(MIXED, mixed),
    )
    return {workload.name: workload for workload in found}


def mean_tokens(workload: Workload, count_tokens: CountTokens) -> float:
    """Tokens of a text, special tokens included."""
    texts = workload.texts(MIXED_REQUESTS * MIXED_TEXTS)
    return sum(map(count_tokens, texts)) / len(texts)


def _lengthened(longs: Sequence[str], count_tokens: CountTokens) -> tuple[str, ...]:
    """Each with short texts added, or taken away, to come just within the limit."""
    short = SHORT_TEXTS_FILE.read_text(encoding="utf-8").splitlines()
    rng = random.Random(SEED)  # noqa: S311
    return tuple(_fitted(text, rng.sample(short, 20), count_tokens) for text in longs)


def _fitted(text: str, more: Sequence[str], count_tokens: CountTokens) -> str:
    while count_tokens(text) > LONG_TOKENS:
        text = text.rpartition(". ")[0]
    for extra in more:
        longer = f"{text}. {extra}"
        if count_tokens(longer) <= LONG_TOKENS:
            text = longer
    return text
