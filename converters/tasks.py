"""Tasks with right answers, run where a user names their files: `--sts` and `--beir`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from converters.retrieval import Collection, ndcg_at_10, read_beir, recall_at_100
from converters.sts import Pairs, read_sts, spearman
from serve_app.engines.base import TokenIds, Vectors
from serve_app.engines.tokenization import Tokenizer
from serve_app.manifest import TaskScore

STS = "STS Spearman"
NDCG = "nDCG@10"
RECALL = "recall@100"

Embed = Callable[[Sequence[TokenIds]], Vectors]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """What was read, if asked for, and how to make tokens of it."""

    pairs: Pairs | None
    collection: Collection | None
    tokenizer: Tokenizer

    @classmethod
    def read(cls, tokenizer: Tokenizer, *, sts: Path | None, beir: Path | None) -> Tasks:
        """Read the files; see `read_sts` and `read_beir` for what they must hold."""
        return cls(
            pairs=read_sts(sts) if sts else None,
            collection=read_beir(beir) if beir else None,
            tokenizer=tokenizer,
        )

    def scores(self, embed: Embed) -> dict[str, float]:
        """Points of 0 to 100, by measure."""
        found = {}
        if self.pairs is not None:
            a, b = self._vectors(embed, self.pairs.a), self._vectors(embed, self.pairs.b)
            found[STS] = spearman((a * b).sum(1).tolist(), self.pairs.scores)
        if self.collection is not None:
            queries = self._vectors(embed, self.collection.queries)
            scores = queries @ self._vectors(embed, self.collection.documents).T
            found[NDCG] = ndcg_at_10(scores, self.collection.relevant)
            found[RECALL] = recall_at_100(scores, self.collection.relevant)
        return found

    def _vectors(self, embed: Embed, texts: Sequence[str]) -> Vectors:
        return embed(self.tokenizer.encode(texts).texts)


def against_fp32(scores: dict[str, float], fp32: dict[str, float]) -> dict[str, TaskScore]:
    """Each score beside FP32's on the same task."""
    return {name: TaskScore(points=scores[name], fp32_points=fp32[name]) for name in scores}
