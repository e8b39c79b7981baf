"""The fresh process that measures load time and memory; profiles themselves are in test_measure.py."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from converters import latency
from serve_app.engines.fake_engine import FakeEngine
from serve_app.errors import ConversionError
from serve_app.manifest import Variant


def test_the_fresh_process_opens_the_whole_variant(
    tmp_path: Path, write_artifact, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """All that an engine must know reaches it, kept modules and autocast too: they cost memory."""
    manifest = write_artifact(tmp_path / "fake-fp16", p1=1.0, cost_ms=1.0)
    manifest = replace(manifest, kept_fp32=("encoder.layer.0",), autocast=True)
    opened: list[Variant] = []

    def open_engine(_: Path, variant: Variant, **__: object) -> FakeEngine:
        opened.append(variant)
        return FakeEngine(dims=8)

    def in_this_process(_: object, *, input: str, **__: object) -> subprocess.CompletedProcess:  # noqa: A002 - subprocess's word
        monkeypatch.setattr(sys, "stdin", io.StringIO(input))
        latency.main()
        return subprocess.CompletedProcess([], 0, stdout=capsys.readouterr().out, stderr="")

    monkeypatch.setattr(latency, "open_engine", open_engine)
    monkeypatch.setattr(latency, "subprocess", SimpleNamespace(run=in_this_process))
    found = latency.setup(tmp_path / "fake-fp16", manifest, threads=1, device="cpu")
    assert opened == [Variant(**latency.variant_fields(manifest))]
    assert opened[0].kept_fp32 == ("encoder.layer.0",)
    assert opened[0].autocast
    assert found.resident_bytes > 0


def test_what_does_not_open_is_one_line(tmp_path: Path, write_artifact) -> None:
    """An artifact that no engine can load is named with the reason."""
    manifest = write_artifact(tmp_path / "onnx-fp32", p1=1.0, cost_ms=1.0)
    broken = replace(manifest, runtime="onnx")
    with pytest.raises(ConversionError, match=r"onnx-fp32 does not open.*cannot load") as caught:
        latency.setup(tmp_path / "onnx-fp32", broken, threads=1, device="cpu")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("gpus", "cuda", "runtime", "runs"),
    [
        (0, True, "torch", False),
        (1, False, "torch", True),
        (1, False, "onnx", False),
        (1, True, "onnx", True),
        (0, True, "onnx", False),
    ],
)
def test_a_gpu_is_for_runtimes_that_can_use_it(
    monkeypatch: pytest.MonkeyPatch, gpus: int, *, cuda: bool, runtime: str, runs: bool
) -> None:
    """A GPU beside an ONNX Runtime without CUDA is none for ONNX variants: they are measured on the CPU."""
    onnx_engine = pytest.importorskip("serve_app.engines.onnx_engine")
    monkeypatch.setattr(latency, "gpu_count", lambda: gpus)
    monkeypatch.setattr(onnx_engine, "has_cuda", lambda: cuda)
    assert latency.gpu_runs(runtime) is runs


@pytest.mark.parametrize(("drivers", "gpus"), [((), 0), (("kfd",), 2)])
def test_pytorch_is_asked_for_gpus_where_there_is_a_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, drivers: tuple[str, ...], gpus: int
) -> None:
    """On Linux without a driver's device PyTorch stays out, whose import would slow each start."""
    for name in drivers:
        (tmp_path / name).touch()
    torch = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 2))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(latency, "GPU_DRIVERS", (tmp_path / "nvidiactl", tmp_path / "kfd"))
    assert latency.gpu_count() == gpus
