"""Load time and memory are measured in a fresh process, of the very variant that will serve."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from converters import latency
from serve_app.engines.fake_engine import FakeEngine
from serve_app.errors import ConversionError
from serve_app.manifest import Variant, read_manifest


def test_the_fresh_process_opens_what_was_asked(
    fake_artifacts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Precision, autocast and the layers kept in FP32 decide memory, and cross with the rest."""
    asked: list[str] = []
    opened: list[Variant] = []

    def run(*_: object, **how: Any) -> subprocess.CompletedProcess[str]:
        asked.append(how["input"])
        return subprocess.CompletedProcess([], 0, stdout="a line of a library\n[5.0, 7]\n")

    def open_engine(_: Path, variant: Variant, **__: object) -> FakeEngine:
        opened.append(variant)
        return FakeEngine(dims=variant.checkpoint.dims)

    monkeypatch.setattr(subprocess, "run", run)
    manifest = replace(
        read_manifest(fake_artifacts / "fake-fp32"), kept_fp32=("encoder.0",), autocast=True
    )
    found = latency.setup(fake_artifacts / "fake-fp32", manifest, threads=1, device="cpu")
    assert (found.load_ms, found.resident_bytes) == (5.0, 7)
    monkeypatch.setattr(sys, "stdin", io.StringIO(asked[0]))
    monkeypatch.setattr(latency, "open_engine", open_engine)
    latency.main()
    (variant,) = opened
    for field in ("variant", "runtime", "precision", "kept_fp32", "autocast"):
        assert getattr(variant, field) == getattr(manifest, field)
    load_ms, held_bytes = json.loads(capsys.readouterr().out)
    assert load_ms >= 0
    assert held_bytes > 0


def test_a_process_that_fails_is_one_line(
    fake_artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variant, and the last line of what the process said."""

    def run(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, stderr="Traceback …\nOSError: no file\n")

    monkeypatch.setattr(subprocess, "run", run)
    manifest = read_manifest(fake_artifacts / "fake-fp32")
    with pytest.raises(ConversionError, match=r"fake-fp32 does not open .*: OSError: no file"):
        latency.setup(fake_artifacts / "fake-fp32", manifest, threads=1, device="cpu")
