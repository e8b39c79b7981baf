"""Real evaluation data: the FP32 pipeline reproduces published scores, and no variant loses much."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from converters.fidelity import embed_sorted
from serve_app.engines.base import Engine, Vectors, open_engine
from serve_app.engines.tokenization import Tokenizer
from serve_app.manifest import TOKENIZER_NAME, verify

FP32_SPEARMAN = 91.34
FP32_NDCG = 79.80


def _spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation ×100, ties ranked by their mean."""
    from scipy.stats import spearmanr

    return 100 * float(spearmanr(a, b).statistic)


def _ndcg_at_10(scores: Vectors, relevant: list[set[int]]) -> float:
    """nDCG@10 ×100 with binary relevance, mean over queries; scores are [queries, documents]."""
    discounts = 1 / np.log2(np.arange(2, 12))
    values = []
    for row, wanted in zip(scores, relevant, strict=True):
        top = np.argsort(-row)[:10]
        gain = sum(discounts[i] for i, document in enumerate(top) if document in wanted)
        values.append(gain / discounts[: len(wanted)].sum())
    return 100 * float(np.mean(values))


class Embedder:
    """A variant as the server runs it: its tokenizer, then length-sorted batches."""

    def __init__(self, folder: Path) -> None:
        manifest = verify(folder)
        self._engine: Engine = open_engine(folder, manifest)
        self._tokenizer = Tokenizer(
            folder / TOKENIZER_NAME, max_tokens=manifest.checkpoint.max_tokens
        )

    def __call__(self, texts: Sequence[str]) -> Vectors:
        return embed_sorted(self._engine, self._tokenizer.encode(texts).texts)


@pytest.mark.parametrize(
    ("variant", "tolerance"), [("onnx-fp32", 0.1), ("openvino-bf16", 0.5), ("onnx-int8", 0.5)]
)
def test_reproduces_the_reference_scores(
    real_artifacts: Path, shared_data: Path, variant: str, tolerance: float
) -> None:
    """STS Spearman and SciFact nDCG@10 are the FP32 checkpoint's; other variants lose under 0.5."""
    folder = real_artifacts / variant
    if not folder.exists():
        pytest.skip(f"{variant} cannot be built on this processor")
    embed = Embedder(folder)

    with (shared_data / "sts_dev.tsv").open(encoding="utf-8") as file:
        columns = ("genre", "score", "a", "b")
        pairs = list(csv.DictReader(file, columns, delimiter="\t", quoting=csv.QUOTE_NONE))
    similarity = (embed([p["a"] for p in pairs]) * embed([p["b"] for p in pairs])).sum(1)
    spearman = _spearman(similarity.tolist(), [float(p["score"]) for p in pairs])

    scifact = shared_data / "scifact1k"
    documents = _read_jsonl(scifact / "corpus.jsonl")
    queries = _read_jsonl(scifact / "queries.jsonl")
    place = {d["_id"]: i for i, d in enumerate(documents)}
    with (scifact / "qrels" / "test.tsv").open(encoding="utf-8") as file:
        qrels = [r for r in csv.DictReader(file, delimiter="\t") if int(r["score"]) > 0]
    wanted: dict[str, set[int]] = {q["_id"]: set() for q in queries}
    for row in qrels:
        wanted[row["query-id"]].add(place[row["corpus-id"]])
    judged = [q for q in queries if wanted[q["_id"]]]
    texts = [f"{d['title']} {d['text']}".strip() for d in documents]
    scores = embed([q["text"] for q in judged]) @ embed(texts).T
    ndcg = _ndcg_at_10(scores, [wanted[q["_id"]] for q in judged])

    print(f"{variant}: Spearman {spearman:.2f}, nDCG@10 {ndcg:.2f}")
    if variant == "onnx-fp32":
        assert abs(spearman - FP32_SPEARMAN) <= tolerance
        assert abs(ndcg - FP32_NDCG) <= tolerance
    assert spearman >= FP32_SPEARMAN - tolerance
    assert ndcg >= FP32_NDCG - tolerance


def _read_jsonl(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
