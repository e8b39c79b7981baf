"""What is asked: mixes, texts, and one sequence for all who share it."""

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from loadtests.errors import BadFile, BadOption
from loadtests.users import SHAPES, users_at
from loadtests.workload import DEFAULT_MIX, Texts, Workload, parse_mix


def test_each_class_sends_its_hint() -> None:
    """Budgets, quality and pin are where the server reads them; unhinted clients send none."""
    texts = ["a text"]
    bodies = {c.name: json.loads(c.body(texts)) for c in DEFAULT_MIX}
    assert bodies["tight"]["latency_ms"] == 25
    assert bodies["interactive"]["latency_ms"] == 100
    assert bodies["relaxed"]["latency_ms"] == 1000
    assert bodies["best"]["quality"] == "best"
    assert set(bodies["unhinted"]) == {"input", "encoding_format"}
    pinned = parse_mix("best")[0].pinned_to("onnx-int8")
    assert json.loads(pinned.body(texts)) == bodies["unhinted"] | {"variant": "onnx-int8"}


def test_a_mix_sets_weights_and_new_budgets() -> None:
    """Known names keep their hints, `50ms` is a class of its own, a weight of 0 leaves one out."""
    mix = parse_mix("tight=3, 50ms=1,bulk=0")
    assert [(c.name, c.weight, c.budget_ms) for c in mix] == [("tight", 3, 25), ("50ms", 1, 50)]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("fast=1", "no class is named 'fast'"),
        ("0ms=1", "no class is named '0ms'"),
        ("tight=-1", "'-1' is no weight"),
        ("tight=much", "'much' is no weight"),
        ("tight=0", "all weights are zero"),
    ],
)
def test_a_mix_that_is_none_is_one_line(given: str, told: str) -> None:
    """The line names the option and the value."""
    with pytest.raises(BadOption, match=told) as refused:
        parse_mix(given)
    assert str(refused.value).startswith(f"--mix={given}")


def test_shares_make_up_the_whole() -> None:
    """Three processes with a share each send what one would, none of it twice."""
    load = Workload(DEFAULT_MIX, Texts.built_in())
    whole = list(islice(load.requests(7), 90))
    shares = [list(islice(load.requests(7, share=i, shares=3), 30)) for i in range(3)]
    assert [shares[i % 3][i // 3] for i in range(90)] == whole
    assert list(islice(load.requests(8), 90)) != whole


def test_the_mix_is_what_is_drawn() -> None:
    """Over many requests classes come by weight, and bulk carries 32 texts."""
    drawn = list(islice(Workload(DEFAULT_MIX, Texts.built_in()).requests(1), 2000))
    counts = Counter(r.hint_class.name for r in drawn)
    for c in DEFAULT_MIX:
        assert counts[c.name] / 2000 == pytest.approx(c.weight / 100, abs=0.03)
    bulk = next(r for r in drawn if r.hint_class.name == "bulk")
    assert len(json.loads(bulk.body)["input"]) == 32


def test_texts_are_queries_passages_and_long_ones() -> None:
    """60, 30 and 10 % of three lengths."""
    texts = Texts.built_in().draw(random.Random(0), 3000)  # noqa: S311
    lengths = [len(text.split(". ")) for text in texts]
    found = Counter("short" if n < 4 else "passage" if n < 15 else "long" for n in lengths)
    assert found["short"] / 3000 == pytest.approx(0.6, abs=0.05)
    assert found["passage"] / 3000 == pytest.approx(0.3, abs=0.05)


def test_each_request_knows_whether_it_is_feasible() -> None:
    """By class and text where a server was asked, pinned or not; bulk and no budget always; nobody asked, nobody knows."""
    texts = Texts((("short", "a long one"),), (1.0,))
    load = Workload(DEFAULT_MIX, texts, {"tight": frozenset(["a long one"])})
    for asked in (load, load.pinned({c.name: "onnx-int8" for c in DEFAULT_MIX})):
        drawn = list(islice(asked.requests(2), 500))
        for r in drawn:
            given = json.loads(r.body)["input"]
            assert r.feasible is not (r.hint_class.name == "tight" and given == "a long one")
        assert {r.feasible for r in drawn if r.hint_class.name == "tight"} == {True, False}
    unasked = [replace(r, feasible=None) for r in islice(load.requests(2), 500)]
    assert list(islice(Workload(DEFAULT_MIX, texts).requests(2), 500)) == unasked


def test_own_texts_are_read_by_line(tmp_path: Path) -> None:
    """One a line, empty lines are none; a file without any, or that is missing, is named."""
    file = tmp_path / "texts.txt"
    file.write_text("one\n\n two \n")
    assert Texts.from_file(file).pools == (("one", "two"),)
    file.write_text("\n")
    with pytest.raises(BadFile, match=r"--texts=.*texts\.txt: it holds no text"):
        Texts.from_file(file)
    with pytest.raises(BadFile, match=r"--texts=.*none\.txt: it cannot be read"):
        Texts.from_file(tmp_path / "none.txt")


@pytest.mark.parametrize("shape", SHAPES)
def test_users_stay_within_their_bounds_and_end(shape: str) -> None:
    """At least one user, never more than asked for, and an end when the time is over."""
    counts = [users_at(shape, t / 10, users=20, duration_s=60) for t in range(600)]
    assert all(count is not None and 1 <= count <= 20 for count in counts)
    assert users_at(shape, 60, users=20, duration_s=60) is None
    assert 20 in counts
