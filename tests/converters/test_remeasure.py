"""Artifacts that were measured elsewhere get the times of this machine, and keep all else."""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich")

import converters.__main__ as program
from converters import latency, remeasure
from serve_app.engines.cpu import Cpu
from serve_app.engines.measure import Setup, hardware_name
from serve_app.errors import ArtifactError, ConversionError
from serve_app.manifest import (
    MANIFEST_NAME,
    Manifest,
    describe_files,
    read_manifest,
    write_manifest,
)
from tests.rungs import change

MakeArtifact = Callable[..., Manifest]

HERE = hardware_name("cpu")
ELSEWHERE = "another machine"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The artifacts opened to be measured; no process is started for that, and there is no GPU."""
    opened: list[str] = []

    def setup(folder: Path, _: object, **how: Any) -> Setup:
        opened.append(folder.name)
        device = how["device"]
        return Setup(hardware=hardware_name(device), load_ms=1.0, resident_bytes=2, **how)

    monkeypatch.setattr(latency, "setup", setup)
    monkeypatch.setattr(latency, "gpu_count", lambda: 0)
    return opened


@pytest.fixture
def out(artifacts: Path) -> Path:
    """Of three artifacts, one was measured here with two threads, and two elsewhere."""
    _change(artifacts / "fake-fp32", hardware=HERE, threads=2)
    _change(artifacts / "fake-bf16", hardware=ELSEWHERE)
    _change(artifacts / "fake-int8", hardware=ELSEWHERE, threads=3)
    return artifacts


def _change(folder: Path, **profile: Any) -> None:
    manifest = read_manifest(folder)
    write_manifest(folder, replace(manifest, profile=replace(manifest.profile, **profile)))


def _bytes(out: Path) -> dict[str, bytes]:
    return {f.parent.name: f.read_bytes() for f in out.glob(f"*/{MANIFEST_NAME}")}


def _run(out: Path) -> tuple[bool, list[str]]:
    """What `build --missing` does first: whether it measured, and what it said."""
    said: list[str] = []
    measured = remeasure.remeasure_foreign(
        out,
        prepare=lambda: said.append("prepared"),
        step=lambda title: nullcontext(said.append(title)),
        say=said.append,
    )
    return measured, said


def test_a_foreign_profile_is_measured_again_here(out: Path, opened: list[str]) -> None:
    """Times and hardware are new, with the threads of before; what was measured here stays."""
    before = _bytes(out)
    measured, said = _run(out)
    assert measured
    assert opened == ["fake-bf16", "fake-int8"]
    for name, threads in (("fake-bf16", 1), ("fake-int8", 3)):
        profile = read_manifest(out / name).profile
        assert (profile.hardware, profile.threads, profile.load_ms) == (HERE, threads, 1.0)
        assert len(profile.grid) > 2
    assert _bytes(out)["fake-fp32"] == before["fake-fp32"]
    assert said[0] == "fake-bf16, fake-int8: measured on other hardware; measuring again on this"
    assert said[1] == "prepared"


def test_nothing_is_rebuilt(out: Path, opened: list[str]) -> None:
    """Files, fidelity and the rest of the manifest are those of the build."""
    before = read_manifest(out / "fake-int8")
    _run(out)
    after = read_manifest(out / "fake-int8")
    assert opened
    assert after.profile != before.profile
    assert replace(after, profile=before.profile) == before
    assert describe_files(out / "fake-int8") == before.files


def test_a_second_run_does_nothing(out: Path, opened: list[str]) -> None:
    """Measured here is measured: not a byte changes, nothing is said and nothing loaded."""
    _run(out)
    before, stamps = _bytes(out), {f: f.stat().st_mtime_ns for f in out.glob("*/*")}
    opened.clear()
    assert _run(out) == (False, [])
    assert opened == []
    assert _bytes(out) == before
    assert {f: f.stat().st_mtime_ns for f in out.glob("*/*")} == stamps


def test_a_folder_that_is_not_there_is_nothing_to_measure(tmp_path: Path) -> None:
    """The first build into a folder comes by here too, and leaves no folder behind."""
    assert _run(tmp_path / "none") == (False, [])
    assert not (tmp_path / "none").exists()


def test_a_gpus_profile_stays_where_there_is_no_gpu(out: Path, opened: list[str]) -> None:
    """A CPU's times are no replacement; only who asks for all is told what is missing."""
    _change(out / "fake-bf16", device="cuda", hardware="a GPU")
    before = _bytes(out)["fake-bf16"]
    _, said = _run(out)
    assert opened == ["fake-int8"]
    assert not any("fake-bf16" in line for line in said)
    said = []
    remeasure.remeasure(out, remeasure.artifacts, step=lambda _: nullcontext(), say=said.append)
    assert opened == ["fake-int8", "fake-fp32", "fake-int8"]
    assert said == [
        "fake-bf16: not measured again (its profile is a GPU's, and this machine has none)"
    ]
    assert _bytes(out)["fake-bf16"] == before


def test_what_this_cpu_lacks_instructions_for_is_left_alone(
    out: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start would try it again otherwise, and say that it cannot."""
    monkeypatch.setattr(remeasure, "this_cpu", lambda: Cpu("A", 2, frozenset({"sse2", "avx2"})))
    change(out / "fake-bf16", runtime="openvino", precision="bf16")
    assert "fake-bf16" not in {folder.name for folder in remeasure.foreign(out)}
    _run(out)
    assert opened == ["fake-int8"]
    assert read_manifest(out / "fake-bf16").profile.hardware == ELSEWHERE


@pytest.mark.parametrize("where", ["fresh process", "here"])
def test_what_cannot_run_here_keeps_its_profile(
    out: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """One artifact whose runtime is missing is told of, and the others are measured."""
    whole = latency.setup

    def setup(folder: Path, variant: Manifest, **how: Any) -> Setup:
        if folder.name == "fake-bf16":
            raise ConversionError("no such runtime")
        return whole(folder, variant, **how)

    if where == "fresh process":
        monkeypatch.setattr(latency, "setup", setup)
    else:
        (out / "fake-bf16" / "model.onnx").write_bytes(b"tampered")
    measured, said = _run(out)
    assert measured
    assert opened == ["fake-int8"]
    assert read_manifest(out / "fake-bf16").profile.hardware == ELSEWHERE
    assert read_manifest(out / "fake-int8").profile.hardware == HERE
    assert sum("fake-bf16: not measured again (" in line for line in said) == 1


def test_a_read_only_folder_is_served_as_it_is(
    out: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Artifacts on a volume that cannot be written are no error: the replicas help themselves."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    measured, said = _run(out)
    assert (measured, opened) == (False, [])
    (line,) = said
    assert "read-only, so replicas will measure" in line


def test_a_broken_manifest_is_refused_by_name(out: Path) -> None:
    """Nothing is measured before all manifests are understood."""
    (out / "fake-int8" / MANIFEST_NAME).write_text("{}")
    with pytest.raises(ArtifactError, match="fake-int8"):
        _run(out)


@pytest.fixture
def command(out: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run `python -m converters …` on the folder; a rebuild would be an error."""
    assert opened == []
    monkeypatch.setattr(program, "_load_libraries", lambda _: None)
    monkeypatch.setattr(program, "_convert", lambda *_: pytest.fail("nothing is to be built"))
    monkeypatch.setattr("converters.recipes.choose", lambda *_, **__: (["fake-fp32"], {}))

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["converters", *words, "--out", str(out)])
        program.main()

    return run


def test_build_missing_measures_and_shows_the_table_once(
    command: Callable[..., None], opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """`make serve` after a copy: measured, told and shown; the next time it is silent and quick."""
    command("build", "--missing")
    told = capsys.readouterr()
    assert opened == ["fake-bf16", "fake-int8"]
    assert "fake-bf16, fake-int8: measured on other hardware" in told.err
    assert "| fake-int8" in told.out
    assert "warning" not in told.err
    command("build", "--missing")
    assert capsys.readouterr() == ("", "")
    assert opened == ["fake-bf16", "fake-int8"]


def test_measure_measures_all_side_by_side(
    command: Callable[..., None], opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for by name, what was measured here in a noisy hour is measured again too."""
    command("measure")
    assert opened == ["fake-bf16", "fake-fp32", "fake-int8"]
    assert "profile fake-bf16, fake-fp32, fake-int8 on" in capsys.readouterr().err


def test_list_warns_of_foreign_profiles_with_the_command_that_mends_them(
    command: Callable[..., None], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line beside the table, and the command in it takes the warning away."""
    command("list")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: profiles measured on other hardware (fake-bf16, fake-int8 on")
    words = line.split("`")[1].split()
    assert words[:3] == ["python", "-m", "converters"]
    assert words[-2:] == ["--out", str(out)]
    command(*words[3:-2])
    command("list")
    assert "warning" not in capsys.readouterr().err


def test_what_needs_a_gpu_is_not_measured_where_there_is_none(
    command: Callable[..., None], out: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It would take longer than all others together, for times that nobody uses; its first profile stays."""
    gpu_only = {"runtime": "torch", "precision": "fp16"}
    folder = out / "fake-bf16"
    write_manifest(folder, replace(read_manifest(folder), **gpu_only))
    before = read_manifest(folder).profile
    assert remeasure.foreign(out) == [out / "fake-int8"]
    command("measure")
    assert opened == ["fake-fp32", "fake-int8"]
    assert "fake-bf16: not measured again (it needs a GPU" in capsys.readouterr().err
    assert read_manifest(folder).profile == before
