"""What is asked: classes of requests by the hint they send, their mix, their texts.

A workload is a seeded sequence of requests, the same for all who draw it. So several processes
share one sequence, and two runs at equal load ask for equal work.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from loadtests.errors import BadFile, BadOption

SHORT_TEXTS_FILE = Path(__file__).parents[1] / "converters" / "data" / "short_texts.txt"
# Shares and lengths of a search service's traffic: queries of about 10 tokens, passages of 70,
# long texts of 200; each is so many of the short texts on end.
LENGTHS = {1: 60, 7: 30, 20: 10}
TEXTS_OF_A_LENGTH = 200
BUDGET_NAME = re.compile(r"(\d+(?:\.\d+)?)ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class HintClass:
    """Requests that send the same hint; without any, the server's defaults hold."""

    name: str
    weight: float
    budget_ms: float | None = None
    quality: str | float | None = None
    variant: str | None = None
    texts_per_request: int = 1

    @property
    def hint(self) -> dict[str, str | float]:
        """The hint's fields in a request's body."""
        fields = {"latency_ms": self.budget_ms, "quality": self.quality, "variant": self.variant}
        return {name: value for name, value in fields.items() if value is not None}

    def pinned_to(self, variant: str) -> HintClass:
        """As this, answered by one variant: a floor of quality would contradict the pin."""
        return replace(self, variant=variant, quality=None)

    def body(self, texts: Sequence[str]) -> bytes:
        """A request's body. Base64 is what OpenAI's own client asks for, and a third the bytes."""
        given = texts[0] if len(texts) == 1 else list(texts)
        content = {"input": given, "encoding_format": "base64"} | self.hint
        return json.dumps(content, ensure_ascii=False).encode()


DEFAULT_MIX = (
    HintClass(name="tight", weight=30, budget_ms=25.0),  # a search box that waits for its vector
    HintClass(name="interactive", weight=30, budget_ms=100.0),  # a page that loads
    HintClass(name="relaxed", weight=15, budget_ms=1000.0),  # a job that can wait a second
    HintClass(name="best", weight=10, quality="best"),  # evaluation runs
    HintClass(name="unhinted", weight=10),  # a client that knows nothing of hints
    # Indexing; its caller says which variant it is pinned to.
    HintClass(name="bulk", weight=5, texts_per_request=32),
)
NAMES = tuple(hint_class.name for hint_class in DEFAULT_MIX)


def parse_mix(given: str | None) -> tuple[HintClass, ...]:
    """Read `tight=3,interactive=4` or `50ms=3,250ms=1`: names or budgets, and their weights."""
    if not given:
        return DEFAULT_MIX
    weights: dict[str, float] = {}
    for part in given.split(","):
        name, equals, weight = (word.strip() for word in part.partition("="))
        weights[name] = _weight(weight, given) if equals else 1.0
    chosen = tuple(_class(name, weight, given) for name, weight in weights.items() if weight > 0)
    if not chosen:
        raise BadOption("--mix", given, "all weights are zero")
    return chosen


def _weight(given: str, mix: str) -> float:
    try:
        weight = float(given)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < float("inf"):
        raise BadOption("--mix", mix, f"{given!r} is no weight; a number from 0 on is")
    return weight


def _class(name: str, weight: float, mix: str) -> HintClass:
    for known in DEFAULT_MIX:
        if known.name == name:
            return replace(known, weight=weight)
    budget = BUDGET_NAME.fullmatch(name)
    if budget is None or float(budget[1]) == 0:
        raise BadOption(
            "--mix", mix, f"no class is named {name!r}; {', '.join(NAMES)}, or a budget as 50ms"
        )
    return HintClass(name=name, weight=weight, budget_ms=float(budget[1]))


@dataclass(frozen=True, slots=True)
class Texts:
    """Pools of texts, each with the share of requests' texts that it gives."""

    pools: tuple[tuple[str, ...], ...]
    shares: tuple[float, ...]

    @classmethod
    @cache
    def built_in(cls) -> Texts:
        """Queries, passages and long texts at 60, 30 and 10 %, all of this project's own words."""
        short = SHORT_TEXTS_FILE.read_text(encoding="utf-8").splitlines()
        rng = random.Random(0)  # noqa: S311
        pools = (
            tuple(". ".join(rng.sample(short, joined)) for _ in range(TEXTS_OF_A_LENGTH))
            for joined in LENGTHS
        )
        return cls(tuple(pools), tuple(LENGTHS.values()))

    @classmethod
    def from_file(cls, file: Path) -> Texts:
        """One text a line, all equally likely; empty lines are none."""
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8"
            raise BadFile(f"--texts={file}: it cannot be read: {why}") from None
        texts = tuple(line for line in map(str.strip, lines) if line)
        if not texts:
            raise BadFile(f"--texts={file}: it holds no text")
        return cls((texts,), (1.0,))

    def draw(self, rng: random.Random, count: int) -> list[str]:
        """Choose so many texts, first a pool for each by share."""
        pools = rng.choices(self.pools, self.shares, k=count)
        return [rng.choice(pool) for pool in pools]


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a workload, ready to be sent."""

    hint_class: HintClass
    body: bytes
    feasible: bool | None  # whether an idle server admits it; None: nobody asked


@dataclass(frozen=True, slots=True)
class Workload:
    """Classes by weight, and texts."""

    classes: tuple[HintClass, ...]
    texts: Texts
    infeasible: Mapping[str, frozenset[str]] | None = None  # by class, where a server was asked

    def pinned(self, pins: Mapping[str, str]) -> Workload:
        """As this, with the classes named in `pins` answered by the variants given there."""
        return replace(
            self,
            classes=tuple(c.pinned_to(pins[c.name]) if c.name in pins else c for c in self.classes),
        )

    def requests(self, seed: int | str, *, share: int = 0, shares: int = 1) -> Iterator[Request]:
        """Draw requests without end: every `shares`-th of the one sequence, from `share` on."""
        for hint_class, texts in itertools.islice(self._draw(seed), share, None, shares):
            yield Request(hint_class, hint_class.body(texts), self._feasible(hint_class, texts))

    def _feasible(self, hint_class: HintClass, texts: Sequence[str]) -> bool | None:
        """Of several texts in one request nobody is asked: they have all the time."""
        if self.infeasible is None:
            return None
        return len(texts) > 1 or texts[0] not in self.infeasible.get(hint_class.name, ())

    def _draw(self, seed: int | str) -> Iterator[tuple[HintClass, list[str]]]:
        rng = random.Random(seed)  # noqa: S311
        weights = [hint_class.weight for hint_class in self.classes]
        while True:
            (hint_class,) = rng.choices(self.classes, weights)
            yield hint_class, self.texts.draw(rng, hint_class.texts_per_request)
