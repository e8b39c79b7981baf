"""The micro-benchmark: what it runs, not how long that takes."""

from pathlib import Path

import pytest

from loadtests.__main__ import parser
from loadtests.micro import micro


def test_every_part_is_timed(artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Decision, batching, encoding, parsing and tokenising are told, and the command never fails."""
    tokenizer = str(artifacts / "fake-fp32" / "tokenizer.json")
    words = ["micro", "--times", "20", "--decisions", "20", "--tokenizer", tokenizer]
    assert micro(parser().parse_args(words)) == 0
    told = capsys.readouterr().out
    for part in (
        *("Brain.decide", "next_batch of 256", "encode 32 as base64", "encode 1 as float"),
        *("parse mixed32", "tokenise query", "commit"),
    ):
        assert part in told
    assert told.count("p99") == 16
