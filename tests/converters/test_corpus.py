"""The texts that decide an integer variant's ranges, and those that judge every variant."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from converters import corpus
from serve_app.errors import ConversionError


def test_sizes() -> None:
    """There are 400 probe texts and 256 calibration texts, none of them twice."""
    assert len(set(corpus.probe_texts())) == 400
    assert len(set(corpus.calibration_texts())) == 256


def test_disjoint() -> None:
    """What calibrates is not probed, not even a sentence of it: the stray exception stays rare."""
    calibration = " ".join(corpus.calibration_texts())
    sentences = [s for text in corpus.probe_texts() for s in text.split(". ") if len(s) > 60]
    assert len(sentences) > 400
    assert set(corpus.probe_texts()).isdisjoint(corpus.calibration_texts())
    assert sum(sentence in calibration for sentence in sentences) < len(sentences) / 100


@pytest.mark.parametrize("texts", [corpus.probe_texts, corpus.calibration_texts])
def test_lengths_are_mixed(texts: Callable[[], list[str]]) -> None:
    """Half are queries and sentences, a third paragraphs, and a seventh fill a 256-token model."""
    chars = [len(text) for text in texts()]
    assert 0.45 <= sum(c <= 110 for c in chars) / len(chars) <= 0.55
    assert 0.13 <= sum(c >= 1300 for c in chars) / len(chars) <= 0.17
    assert max(chars[:40]) > 10 * min(chars[:40])  # the order is by digest, so by Python version


def test_reproducible_without_imports() -> None:
    """Another process finds the same texts, and imports none of the modules that it reads."""
    code = (
        "import sys, hashlib; from converters import corpus; "
        "texts = corpus.probe_texts() + corpus.calibration_texts(); "
        "print(hashlib.sha256(repr(texts).encode()).hexdigest(), "
        "{'turtle', 'smtplib', 'torch', 'ray'} & set(sys.modules))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            cwd=Path(corpus.__file__).parents[1],
            env={"PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert printed.pop().endswith("set()")


def test_reads_lines(tmp_path: Path) -> None:
    """A text file is one text a line; blank lines, a byte order mark and CRLF do not matter."""
    file = tmp_path / "mine.txt"
    file.write_bytes("\ufefferste Zeile\r\n\n  zweite\u2028Zeile \n".encode())
    assert corpus.read_corpus(file) == ["erste Zeile", "zweite\u2028Zeile"]


def test_reads_jsonl(tmp_path: Path) -> None:
    """In a .jsonl file the field "text" counts, line breaks in it included."""
    file = tmp_path / "mine.jsonl"
    file.write_text('{"id": 1, "text": "a\\nb"}\n\n{"text": "c"}\n')
    assert corpus.read_corpus(file) == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.txt", b" \n\n", "no text in it"),
        ("a.txt", b"good\nb\xffd\n", "line 2, byte 6"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", b'\n{"body": "a"}\n', 'line 2: no "text" field'),
        ("a.jsonl", b'{"text": 7}\n', 'line 1: no "text" field'),
        ("a.jsonl", b'["text"]\n', 'line 1: no "text" field'),
    ],
)
def test_bad_file(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    """A file that cannot be used is named in one line, with the place of the problem."""
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ConversionError) as caught:
        corpus.read_corpus(file)
    message = str(caught.value)
    assert str(file) in message
    assert problem in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["absent.txt", "."])
def test_unreadable_file(tmp_path: Path, name: str) -> None:
    """A file that is absent, or is a folder, is named."""
    with pytest.raises(ConversionError, match=str(tmp_path)):
        corpus.read_corpus(tmp_path / name)
