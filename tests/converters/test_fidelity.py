"""Fidelity: numbers that small cases let one work out by hand."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from converters.fidelity import drift, embed_sorted, measure
from converters.retrieval import (
    Split,
    cross_table,
    ndcg_at_10,
    overlap,
    overlaps,
    read_beir,
    recall_at_100,
)
from converters.sts import read_sts, spearman
from serve_app.engines.base import TokenIds, Vectors
from serve_app.engines.fake_engine import FakeEngine
from serve_app.errors import ConversionError

DIMS = 16


def _texts(count: int, *, longest: int = 40) -> list[TokenIds]:
    rng = np.random.default_rng(7)
    return [rng.integers(1, 99, rng.integers(2, longest)).astype(np.int32) for _ in range(count)]


def _unit(vectors: Vectors) -> Vectors:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _noisy(vectors: Vectors, scale: float) -> Vectors:
    noise = np.random.default_rng(3).standard_normal(vectors.shape, dtype=np.float32)
    return _unit(vectors + scale * noise)


class Moving:
    """An engine whose vectors move where its rule says that this batch moves them."""

    def __init__(self, rule: str) -> None:
        self._fake = FakeEngine(dims=DIMS)
        self._rule = rule
        self.calls = 0

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        self.calls += 1
        vectors = self._fake.embed(texts)
        return _noisy(vectors, 0.05) if self._moves(texts) else vectors

    def _moves(self, texts: Sequence[TokenIds]) -> bool:
        lengths = [len(ids) for ids in texts]
        return {
            "never": False,
            "in company": len(texts) > 1,
            "in pairs": len(texts) == 2,
            "with use": len(texts) == 1 and self.calls > 60,
            "in wide batches": len(texts) > 2 and lengths != sorted(lengths),
        }[self._rule]


def _drift_of(rule: str) -> dict[str, bool]:
    engine, texts = Moving(rule), _texts(48)
    found = drift(engine, texts, in_batches=embed_sorted(engine, texts))
    ways = ("alone", "sorted_batch", "beside_longest", "padded")
    return {way: getattr(found, way) > 1e-4 for way in ways}


@pytest.mark.parametrize(
    ("rule", "seen"),
    [
        ("never", set()),
        ("in company", {"sorted_batch", "beside_longest", "padded"}),
        ("in pairs", {"beside_longest"}),
        ("with use", {"alone"}),
        ("in wide batches", {"padded"}),
    ],
)
def test_each_way_of_drift_is_seen_by_its_own_number(rule: str, seen: set[str]) -> None:
    """An engine that moves vectors in one kind of batch is caught there, and only there."""
    assert {way for way, moved in _drift_of(rule).items() if moved} == seen


def test_an_honest_engine_is_perfect() -> None:
    """An engine compared with itself has cosine 1, full overlap and no drift."""
    engine, texts = FakeEngine(dims=DIMS), _texts(60)
    found = measure(engine, embed_sorted(engine, texts), texts)
    assert found.min == pytest.approx(1, abs=1e-9)
    assert (found.overlap.both, found.overlap.queries, found.overlap.documents) == (1, 1, 1)
    assert found.batch_drift <= 1e-12
    assert (found.probe_texts, found.tasks) == (60, {})


def test_the_first_percentile_is_what_99_of_100_texts_reach() -> None:
    """Two bad texts of 400 leave p1 untouched and set the minimum; eight set p1."""
    engine, texts = FakeEngine(dims=DIMS), _texts(400)
    reference = embed_sorted(engine, texts)
    two, eight = reference.copy(), reference.copy()
    two[:2] *= -1
    eight[:8] *= -1
    assert measure(engine, two, texts).p1 == pytest.approx(1)
    assert measure(engine, two, texts).min == pytest.approx(-1)
    assert measure(engine, eight, texts).p1 == pytest.approx(-1)


def test_short_texts_query_the_longer_ones() -> None:
    """The split depends on lengths alone: the shorter half queries, ties in the order given."""
    texts = [np.ones(n, np.int32) for n in (9, 3, 7, 3, 5)]
    split = Split.by_length(texts)
    assert split.queries.tolist() == [1, 3]
    assert split.documents.tolist() == [4, 2, 0]
    with pytest.raises(ConversionError, match=r"3 probe texts.*--corpus"):
        Split.by_length(texts[:3])


def test_overlap_counts_what_stays_among_the_ten_nearest() -> None:
    """Of one query's ten nearest, three that change leave 0.7, in whatever order they come."""
    reference = np.arange(40, 0, -1, dtype=np.float32)[None, :]  # the first ten are nearest
    changed = reference.copy()
    changed[0, :3] = -1
    changed[0, 3:10] = changed[0, 3:10][::-1].copy()
    assert overlap(changed, reference) == pytest.approx(0.7)
    assert overlap(reference, reference) == 1.0


def test_overlap_of_few_documents_can_fail() -> None:
    """Of ten documents the best five are compared: ten of ten would always agree."""
    reference = np.arange(10, dtype=np.float32)[None, :]
    assert overlap(-reference, reference) == 0.0


def test_one_sided_overlap_names_the_noisy_side() -> None:
    """Noise in the query vectors alone lowers both and queries, and leaves documents at 1."""
    texts = _texts(80)
    reference = embed_sorted(FakeEngine(dims=DIMS), texts)
    split = Split.by_length(texts)
    noisy = reference.copy()
    noisy[split.queries] = _noisy(reference, 0.5)[split.queries]
    found = overlaps(noisy, reference, split)
    assert found.documents == 1.0
    assert found.queries == found.both < 1.0


def test_the_cross_table_reads_documents_then_queries() -> None:
    """table[A][B] has A's documents and B's queries, and FP32 with itself is 1."""
    texts = _texts(80)
    reference = embed_sorted(FakeEngine(dims=DIMS), texts)
    split = Split.by_length(texts)
    noisy = reference.copy()
    noisy[split.documents] = _noisy(reference, 0.5)[split.documents]
    table = cross_table({"fp32": reference, "other": noisy}, reference, split)
    assert table["fp32"] == {"fp32": 1.0, "other": 1.0}
    assert table["other"]["fp32"] == table["other"]["other"] < 1.0


def test_ndcg_and_recall_of_a_case_worked_out_by_hand() -> None:
    """Relevant documents at ranks 1 and 3 of three give (1 + 1/2) / (1 + 1/log2 3); recall counts."""
    scores = np.array([[3.0, 2.0, 1.0]], dtype=np.float32)
    assert ndcg_at_10(scores, [{0, 2}]) == pytest.approx(100 * 1.5 / (1 + 1 / np.log2(3)))
    assert ndcg_at_10(scores, [{0}]) == pytest.approx(100)
    many = np.arange(200, 0, -1, dtype=np.float32)[None, :]
    assert recall_at_100(many, [{0, 99, 100, 150}]) == pytest.approx(50)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 100.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -100.0),
        ([1, 2, 3], [1, 3, 2], 50.0),
        ([1, 2, 2, 3], [1, 2, 3, 4], 100 * 4.5 / np.sqrt(4.5 * 5)),  # ties share their mean rank
    ],
)
def test_spearman_of_cases_worked_out_by_hand(
    a: list[float], b: list[float], expected: float
) -> None:
    """Ranks decide, and tied values share the mean of their ranks."""
    assert spearman(a, b) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("images\t1.0\tone\n", "line 1: not genre, score, a, b"),
        ("images\t1.0\ta\tb\nimages\tmuch\ta\tb\n", "line 2: not genre, score, a, b"),
        ("images\t1.0\ta\tb\n", "fewer than two pairs"),
    ],
)
def test_a_broken_sts_file_is_refused_by_line(tmp_path: Path, content: str, message: str) -> None:
    """Lines that are not genre, score and two sentences are named with their number."""
    file = tmp_path / "sts.tsv"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConversionError, match=message):
        read_sts(file)


def test_no_sts_file_is_refused_by_name(tmp_path: Path) -> None:
    """A path without a file is one line with the path."""
    with pytest.raises(ConversionError, match="nowhere"):
        read_sts(tmp_path / "nowhere.tsv")


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """Three documents, two queries, one of them judged."""
    documents = [{"_id": n, "title": "T", "text": f"text {n}"} for n in "abc"]
    queries = [{"_id": "1", "text": "one"}, {"_id": "2", "text": "two"}]
    for name, rows in (("corpus", documents), ("queries", queries)):
        lines = "\n".join(map(json.dumps, rows))
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "qrels").mkdir()
    judged = "query-id\tcorpus-id\tscore\n2\tc\t1\n2\ta\t0\n"
    (tmp_path / "qrels" / "test.tsv").write_text(judged, encoding="utf-8")
    return tmp_path


def test_beir_is_read_with_titles_and_judged_queries_only(beir: Path) -> None:
    """Titles lead the texts; a query without a relevant document does not count."""
    found = read_beir(beir)
    assert found.documents == ["T text a", "T text b", "T text c"]
    assert (found.queries, found.relevant) == (["two"], [{2}])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.jsonl", "{", "not UTF-8 JSON lines"),
        ("queries.jsonl", '{"text": "no id"}', 'row 1 lacks "_id"'),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n2\tz\t1\n", "unknown id .'z'"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "no query has a relevant"),
    ],
)
def test_a_broken_collection_is_refused_by_file(
    beir: Path, name: str, content: str, message: str
) -> None:
    """What is not BEIR's layout is refused with the file's name and the reason."""
    (beir / name).write_text(content, encoding="utf-8")
    with pytest.raises(ConversionError, match=f"{Path(name).name}: .*{message}"):
        read_beir(beir)
