"""Options, texts, batches, places and subjects of the benchmark."""

import argparse
import json
from pathlib import Path

import pytest

from loadtests.__main__ import parser
from loadtests.bench import ours
from loadtests.bench.batches import arrival_batches, sorted_batches
from loadtests.bench.engine_worker import EngineJob, Worker
from loadtests.bench.engines import EngineSubject
from loadtests.bench.places import machine_slug, results_folder
from loadtests.bench.run import Options, chosen, options_of
from loadtests.bench.samples import Cell, Row
from loadtests.bench.workloads import LONG_TOKENS, MIXED, Ask, mean_tokens, workloads
from loadtests.errors import BadOption
from serve_app.engines.base import open_engine
from serve_app.engines.tokenization import Tokenizer
from serve_app.environment import FAST
from serve_app.registry import load_ladder


def _count(text: str) -> int:
    return len(text.split()) + 2


def _options(*words: str) -> Options:
    args: argparse.Namespace = parser().parse_args(["bench", *words])
    return options_of(args)


def test_options_select_cells_and_rounds() -> None:
    """All workloads and 1, 16 and 64 clients by default; quick is one short round."""
    assert len(_options().cells) == 9
    some = _options("--quick", "--workloads", "mixed32,query", "--clients", "4", "--seconds", "1")
    assert some.cells == (Cell("mixed32", 4), Cell("query", 4))
    assert (some.rounds, some.pace.seconds) == (1, 1)


@pytest.mark.parametrize(
    "words",
    [
        ("--workloads", "queries"),
        ("--clients", "0"),
        ("--clients", "x"),
        ("--rounds", "0"),
        ("--seconds", "0"),
        ("--idle-seconds", "-1"),
    ],
)
def test_a_wrong_option_is_named(words: tuple[str, str]) -> None:
    """One line with the option and its value."""
    with pytest.raises(BadOption, match=f"^{words[0]}={words[1]}:"):
        _options(*words)


def test_texts_are_those_asked_for() -> None:
    """Long texts come close to the model's limit and never over it, 32 a request, and the same again."""
    found = workloads(_count)
    assert {name: len(w.requests[0]) for name, w in found.items()} == {
        "query": 1,
        "passage": 1,
        "mixed32": 32,
    }
    lengths = [_count(text) for text in found[MIXED].texts(10_000)]
    longs = [n for n in lengths if n > 200]
    assert 0.06 < len(longs) / len(lengths) < 0.14
    assert max(longs) <= LONG_TOKENS < min(longs) + 12
    assert found == workloads(_count)
    assert mean_tokens(found["query"], _count) < mean_tokens(found["passage"], _count)


def test_one_text_is_asked_bare_and_more_in_a_list() -> None:
    """With the row's fields and encoding, where the server knows one."""
    assert json.loads(Ask({"variant": "v"}).body(["ä"])) == {
        "input": "ä",
        "encoding_format": "base64",
        "variant": "v",
    }
    assert json.loads(Ask(encoding=None).body(["a", "b"])) == {"input": ["a", "b"]}


def test_sorted_batches_keep_to_their_tokens() -> None:
    """Each position once, at most so many padded tokens, and a text above that alone."""
    lengths = [5, 90, 6, 300, 5, 80]
    batches = sorted_batches(lengths, 200)
    assert batches == [[0, 4, 2], [5, 1], [3]]
    assert arrival_batches(5, size=2) == [[0, 1], [2, 3], [4]]


def test_an_engine_runs_whole_windows(artifacts: Path) -> None:
    """Each mode embeds its texts, and not fewer than a window where it sorts."""
    folder = artifacts / "fake-fp32"
    worker = Worker.open(folder)
    texts = ["hello world", "the query", "a text of the world"] * 3
    for mode, least in (("one a call", 1), ("sorted, tokenising", 9), ("arrival order", 9)):
        done = worker.run(EngineJob(mode=mode, texts=texts, seconds=0))
        assert done.texts == least
        assert done.wall_s > 0
    longer = worker.run(
        EngineJob(mode="one a call", texts=texts, seconds=20), now_s=iter(range(100)).__next__
    )
    assert longer.texts == 20


def test_an_engine_batches_by_its_profile(artifacts: Path) -> None:
    """Sorted batches hold what the profile says, batches in order of arrival 16 texts."""
    folder = artifacts / "fake-fp32"
    manifest = load_ladder(artifacts).rungs[0].manifest
    asked: list[int] = []

    class Counting:
        def __init__(self) -> None:
            self._engine = open_engine(folder, manifest)

        def embed(self, texts):
            asked.append(len(texts))
            return self._engine.embed(texts)

    tokenizer = Tokenizer(folder / "tokenizer.json", max_tokens=16)
    worker = Worker(Counting(), tokenizer, batch_tokens=8)
    texts = ["hello world"] * 20  # 4 tokens each
    worker.run(EngineJob(mode="sorted", texts=texts, seconds=0))
    assert asked == [2] * 10
    asked.clear()
    worker.run(EngineJob(mode="arrival order", texts=texts, seconds=0))
    assert asked == [16, 4]


def test_engines_are_asked_once_a_workload(tmp_path: Path) -> None:
    """Clients are none of theirs; order of arrival matters only where lengths differ."""
    plan = EngineSubject(tmp_path, "v").plan([Cell("query", 1), Cell("query", 16), Cell(MIXED, 1)])
    assert [cell for cell, _ in plan] == [Cell("query", 0), Cell(MIXED, 0)]
    modes = [{row.mode for row in rows} for _, rows in plan]
    assert modes[1] - modes[0] == {"arrival order"}


def test_our_rows_are_pinned_routed_and_float(artifacts: Path) -> None:
    """Each variant pinned, one routed without a pin, and the cheapest above .98 as numbers."""
    ladder = load_ladder(artifacts)
    asks = ours.ours(artifacts, ladder).asks
    assert [str(row) for row in asks] == [
        *("ours fake-fp32", "ours fake-bf16", "ours fake-int8"),
        *("ours routed", "ours fake-int8 float"),
    ]
    assert "variant" not in asks[Row("ours", None, "routed")].fields
    assert ours.best_rung(ladder).manifest.variant == "fake-bf16"
    peers = ours.compared_with_peers(artifacts, ladder)
    assert [str(row) for row in peers.asks] == ["ours fake-bf16", "ours fake-int8"]


def test_the_stock_row_undoes_every_setting_that_is_fast(artifacts: Path) -> None:
    """A new setting in `environment.py` needs Serve's default beside it here."""
    stock = ours.stock(artifacts, load_ladder(artifacts))
    assert stock.environment.keys() >= FAST.keys()
    assert all(stock.environment[n] != FAST[n] for n in FAST if "PROXY" in n or "THROUGH" in n)


def test_rows_are_chosen_by_a_word(artifacts: Path) -> None:
    """A word that nobody's name has is an error that tells the names."""
    ladder = load_ladder(artifacts)
    subjects = [ours.bare(artifacts, ladder), EngineSubject(artifacts, "fake-fp32")]
    assert [s.name for s in chosen(subjects, ("fake",))] == ["engine fake-fp32"]
    assert len(chosen(subjects, ())) == 2
    with pytest.raises(BadOption, match="there are bare, engine fake-fp32"):
        chosen(subjects, ("tpu",))


@pytest.mark.parametrize(
    ("hardware", "slug"),
    [
        ("Intel(R) Xeon(R) Processor, 2 cores, avx2 avx512_vnni", "intel-xeon-2-cores"),
        ("Intel(R) Core(TM) i7-13700K CPU @ 3.40GHz, 16 cores, x", "intel-core-i7-13700k-16-cores"),
        ("AMD EPYC 9B14, 2 cores, flags unknown", "amd-epyc-9b14-2-cores"),
    ],
)
def test_a_machine_has_a_short_name(hardware: str, slug: str) -> None:
    """Maker, model and cores; no marks, no flags."""
    assert machine_slug(hardware) == slug


def test_a_run_that_is_there_is_left_alone(tmp_path: Path) -> None:
    """The second run of a day gets a folder of its own."""
    first = results_folder("bench", out=tmp_path / "bench")
    assert results_folder("bench", out=first) == first
    (first / "results.json").touch()
    assert results_folder("bench", out=first) == tmp_path / "bench-2"
