"""What retrieval keeps of FP32's results.

Top-10 overlap over the probe texts; nDCG@10 and recall@100 over a judged collection in BEIR's layout.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serve_app.engines.base import TokenIds, Vectors
from serve_app.errors import ConversionError
from serve_app.manifest import Overlap

TOP = 10
RECALL_DEPTH = 100
LEAST_PROBE_TEXTS = 4

Scores = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Split:
    """Positions of the probe texts that query, and of those that are searched."""

    queries: Places
    documents: Places

    @classmethod
    def by_length(cls, texts: Sequence[TokenIds]) -> Split:
        """The shorter half queries the longer half; among equals, the order given decides.

        Raises:
            ConversionError: too few texts to compare anything.
        """
        if len(texts) < LEAST_PROBE_TEXTS:
            raise ConversionError(
                f"{len(texts)} probe texts, and fidelity needs {LEAST_PROBE_TEXTS} at least: "
                "give a longer --corpus"
            )
        order = np.argsort([len(ids) for ids in texts], kind="stable")
        half = len(texts) // 2
        return cls(queries=order[:half], documents=order[half:])


def top(scores: Scores, depth: int) -> Places:
    """The best documents of each query, best first: [queries, at most depth]."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :depth]


def overlap(scores: Scores, reference: Scores) -> float:
    """Mean share of the reference's top 10 that is in the other's; scores are [queries, documents].

    Of fewer than 20 documents it is the top half: ten of ten would always agree.
    """
    depth = min(TOP, max(1, scores.shape[1] // 2))
    pairs = zip(top(scores, depth), top(reference, depth), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / depth for a, b in pairs]))


def overlaps(vectors: Vectors, reference: Vectors, split: Split) -> Overlap:
    """Top-10 overlap of a variant with FP32; both are [probe texts, dims]."""
    found = cross_table({"variant": vectors, "fp32": reference}, reference, split)
    return Overlap(
        both=found["variant"]["variant"],
        queries=found["fp32"]["variant"],
        documents=found["variant"]["fp32"],
    )


def cross_table(
    vectors: Mapping[str, Vectors], reference: Vectors, split: Split
) -> dict[str, dict[str, float]]:
    """Top-10 overlap with FP32 on both sides, for documents in one variant and queries in another.

    Args:
        vectors: by variant, [probe texts, dims].
        reference: FP32's.
        split: which texts query which.

    Returns:
        By variant of the documents, then by variant of the queries.
    """
    right = reference[split.queries] @ reference[split.documents].T
    return {
        of_documents: {
            of_queries: overlap(b[split.queries] @ a[split.documents].T, right)
            for of_queries, b in vectors.items()
        }
        for of_documents, a in vectors.items()
    }


def ndcg_at_10(scores: Scores, relevant: Sequence[set[int]]) -> float:
    """nDCG@10 ×100 with binary relevance, mean over queries; scores are [queries, documents]."""
    discounts = 1 / np.log2(np.arange(2, TOP + 2))
    values = []
    for best, wanted in zip(top(scores, TOP), relevant, strict=True):
        gain = sum(discounts[rank] for rank, place in enumerate(best) if int(place) in wanted)
        values.append(gain / discounts[: len(wanted)].sum())
    return 100 * float(np.mean(values))


def recall_at_100(scores: Scores, relevant: Sequence[set[int]]) -> float:
    """Share ×100 of the relevant documents among the best 100, mean over queries."""
    pairs = zip(top(scores, RECALL_DEPTH), relevant, strict=True)
    return 100 * float(
        np.mean([len(wanted & set(best.tolist())) / len(wanted) for best, wanted in pairs])
    )


@dataclass(frozen=True, slots=True)
class Collection:
    """Documents, the queries that have judgements, and the relevant documents' positions of each."""

    documents: list[str]
    queries: list[str]
    relevant: list[set[int]]


def read_beir(folder: Path) -> Collection:
    """Read `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv` of BEIR's layout.

    Raises:
        ConversionError: names the file that is missing or not in that layout.
    """
    documents = _read_jsonl(folder / "corpus.jsonl")
    queries = _read_jsonl(folder / "queries.jsonl")
    places = {row["_id"]: place for place, row in enumerate(documents)}
    relevant: dict[str, set[int]] = {row["_id"]: set() for row in queries}
    qrels = folder / "qrels" / "test.tsv"
    try:
        with qrels.open(encoding="utf-8") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                if int(row["score"]) > 0:
                    relevant[row["query-id"]].add(places[row["corpus-id"]])
    except OSError as error:
        raise ConversionError(f"{qrels}: {error.strerror}; --beir needs BEIR's layout") from error
    except (KeyError, ValueError) as error:
        raise ConversionError(f"{qrels}: not BEIR's layout, or an unknown id ({error})") from error
    judged = [row for row in queries if relevant[row["_id"]]]
    if not judged:
        raise ConversionError(f"{qrels}: no query has a relevant document")
    return Collection(
        documents=[f"{row.get('title', '')} {row['text']}".strip() for row in documents],
        queries=[row["text"] for row in judged],
        relevant=[relevant[row["_id"]] for row in judged],
    )


def _read_jsonl(file: Path) -> list[dict[str, str]]:
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    except OSError as error:
        raise ConversionError(f"{file}: {error.strerror}; --beir needs BEIR's layout") from error
    except ValueError as error:
        raise ConversionError(f"{file}: not UTF-8 JSON lines ({error})") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not {"_id", "text"} <= row.keys():
            raise ConversionError(f'{file}: row {number} lacks "_id" or "text"')
    return rows
