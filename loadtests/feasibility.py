"""Which texts an idle server admits under which budget: asked before the load, then known of each request.

What even an idle server refuses, no load has taken away: such a request is infeasible, and counts
neither in a share within budget nor in the knee. Admission depends on a text's tokens only, so a limit
for each class tells all. The file holds no text, only their tokens in the order of the pools.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

from loadtests.errors import BadFile
from loadtests.workload import HintClass, Texts, Workload

NAME = "feasibility.json"


def has_limit(hint_class: HintClass) -> bool:
    """Whether some of a class's requests can be infeasible: one text under a budget."""
    return hint_class.budget_ms is not None and hint_class.texts_per_request == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Feasibility:
    """What an idle server admits, of one set of texts."""

    tokens: tuple[tuple[int, ...], ...]  # of each text, by pool
    token_limits: Mapping[str, int]  # by hint class: the most tokens that are admitted, 0 for none
    estimated_texts: int  # how many texts' tokens come from their length, not from the server
    digest: str  # of the texts

    def infeasible(self, texts: Texts) -> dict[str, frozenset[str]]:
        """By hint class the texts that an idle server refuses; raises BadFile if asked of others."""
        if self.digest != digest(texts):
            raise BadFile("the file of --feasibility is about other texts than these")
        pairs = [
            pair
            for of in zip(texts.pools, self.tokens, strict=True)
            for pair in zip(*of, strict=True)
        ]
        return {
            name: frozenset(text for text, tokens in pairs if tokens > limit)
            for name, limit in self.token_limits.items()
        }

    def shares(self, texts: Texts) -> dict[str, float]:
        """By hint class the share of requests that an idle server admits."""
        return {
            name: _mean([float(np.mean(np.array(pool) <= limit)) for pool in self.tokens], texts)
            for name, limit in self.token_limits.items()
        }

    def tokens_per_request(self, workload: Workload) -> float:
        """How many tokens a request of the mix has on average."""
        of_a_text = _mean([float(np.mean(pool)) for pool in self.tokens], workload.texts)
        texts = sum(c.weight * c.texts_per_request for c in workload.classes)
        return of_a_text * texts / sum(c.weight for c in workload.classes)

    def write(self, folder: Path) -> Path:
        """Write it into a run's folder, for the processes that send; returns the file."""
        file = folder / NAME
        file.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        return file

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read it back; raises BadFile."""
        try:
            given = json.loads(file.read_text(encoding="utf-8"))
            return cls(**given | {"tokens": tuple(map(tuple, given["tokens"]))})
        except OSError as error:
            raise BadFile(f"--feasibility={file}: it cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, KeyError):
            raise BadFile(f"--feasibility={file}: it is not what a run writes") from None


def digest(texts: Texts) -> str:
    """Tell one set of texts from another."""
    content = json.dumps(texts.pools, ensure_ascii=False).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _mean(of_pools: list[float], texts: Texts) -> float:
    return float(np.average(of_pools, weights=texts.shares))
