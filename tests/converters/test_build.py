"""Builds that are killed, that meet, or that cannot write: the real command, on a tiny model."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: nothing can be converted")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")

from converters import workplace as place
from serve_app.errors import ArtifactError, ConversionError
from serve_app.manifest import verify, write_manifest
from serve_app.registry import load_ladder

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120
VARIANT, SECOND = "onnx-fp32", "onnx-int8"
FOR_LONG = ("--recover", "--recover-minutes", "9")  # with SECOND: until it is killed

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tiny_checkpoint: Path, tiny_texts: list[str], tmp_path: Path) -> Iterator[Start]:
    """Start `python -m converters build` into a folder; whatever still runs is killed at the end."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(tiny_texts))
    running: list[subprocess.Popen[str]] = []

    def start(
        out: Path, *more: str, checkpoint: Path = tiny_checkpoint, variants: str = VARIANT
    ) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "converters", "build", "--out", str(out)]
        options = {"--checkpoint": checkpoint, "--corpus": corpus, "--variants": variants}
        command += [str(part) for option in options.items() for part in option]
        process = subprocess.Popen(
            [*command, *more],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def wait_for_work(out: Path, process: subprocess.Popen[str], *, variant: str = VARIANT) -> None:
    """Until a conversion is under way in the folder."""
    deadline = time.monotonic() + PATIENCE_S
    while not list(out.glob(f"{place.SCRATCH_PREFIX}*/{variant}")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_line(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    assert any(words in line for line in process.stdout)


def test_a_killed_build_leaves_nothing_and_the_waiting_one_builds(
    start: Start, tmp_path: Path
) -> None:
    """A second build says that it waits; when the first is killed, it clears up and finishes whole."""
    out = tmp_path / "artifacts"
    first = start(out, *FOR_LONG, variants=SECOND)
    wait_for_work(out, first, variant=SECOND)
    second = start(out)
    wait_for_line(second, "waiting for another build")
    first.kill()
    first.wait()
    with pytest.raises(ArtifactError, match="no variant in"):
        load_ladder(out)
    output, _ = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, output
    assert verify(out / VARIANT).variant == VARIANT
    assert sorted(path.name for path in out.iterdir()) == [place.LOCK_NAME, VARIANT]


def test_an_interrupted_build_leaves_what_was_there(start: Start, tmp_path: Path) -> None:
    """Ctrl-C in the middle: exit code 130, one line, and the artifacts of before, byte for byte."""
    out = tmp_path / "artifacts"
    (out / VARIANT).mkdir(parents=True)
    (out / VARIANT / "model.onnx").write_bytes(b"of before")
    process = start(out)
    wait_for_work(out, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, output
    assert output.splitlines()[-1].startswith(
        "interrupted; the artifacts that were there are unchanged"
    )
    assert (out / VARIANT / "model.onnx").read_bytes() == b"of before"
    assert sorted(path.name for path in out.iterdir()) == [place.LOCK_NAME, VARIANT]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_build_goes_on_where_it_was_killed(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    """Of two variants the finished one is kept to the byte, the other made; both are then compared."""
    out = tmp_path / "artifacts"
    both = f"{VARIANT},{SECOND}"
    killed = start(out, *FOR_LONG, variants=both)
    wait_for_work(out, killed, variant=SECOND)
    killed.send_signal(number)
    output, _ = killed.communicate(timeout=PATIENCE_S)
    assert killed.returncode == (-number if number == signal.SIGKILL else 128 + number), output
    assert not (out / SECOND).exists()
    if number == signal.SIGTERM:  # cleared up at once
        assert sorted(p.name for p in out.iterdir()) == [place.LOCK_NAME, place.UNCOMPARED, VARIANT]
        assert load_ladder(out).rungs[0].manifest.variant == VARIANT
    resumed = start(out, "--missing", variants=both)
    output, _ = resumed.communicate(timeout=PATIENCE_S)
    assert resumed.returncode == 0, output
    assert f"{SECOND}: convert" in output
    assert f"{VARIANT}: convert" not in output
    assert sorted(p.name for p in out.iterdir()) == [place.LOCK_NAME, VARIANT, SECOND]
    grids = [[(c.texts, c.tokens) for c in verify(out / v).profile.grid] for v in (VARIANT, SECOND)]
    assert grids[0] == grids[1]


def test_damaged_weights_are_one_line(start: Start, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A safetensors file cut short: exit code 2, one line that names the folder, nothing written."""
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    process = start(tmp_path / "artifacts", checkpoint=broken)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2, output
    last = output.splitlines()[-1]
    assert last.startswith(f"error: {weights}: corrupt or cut short")
    assert "Traceback" not in output
    assert not (tmp_path / "artifacts").exists()


def step(_: str) -> nullcontext[None]:
    return nullcontext()


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    """A folder that cannot be made is named with the system's reason."""
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(
            ConversionError, match=r"file/artifacts: cannot be written \(Not a directory"
        ),
        place.workplace(tmp_path / "file" / "artifacts", step),
    ):
        pytest.fail("there is no place to work in")


def _write_half(scratch: Path, error: Exception) -> None:
    (scratch / "half").write_text("written so far")
    raise error


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("I/O error: No space left on device"),
        ConversionError("ONNX export failed: OSError: [Errno 28] No space left on device"),
    ],
)
def test_a_full_disk_is_one_line(error: Exception, tmp_path: Path) -> None:
    """A disk that fills up, whichever library meets it: named, cleared up, artifacts untouched."""
    (tmp_path / VARIANT).mkdir()
    with (
        pytest.raises(ConversionError, match=r"cannot be written \(No space left on device\)"),
        place.workplace(tmp_path, step) as scratch,
    ):
        _write_half(scratch, error)
    assert sorted(path.name for path in tmp_path.iterdir()) == [place.LOCK_NAME, VARIANT]


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    """A bug in a conversion is not dressed up as a disk problem."""
    with pytest.raises(ZeroDivisionError), place.workplace(tmp_path, step):
        raise ZeroDivisionError


def test_death_between_the_two_renames_is_mended(tmp_path: Path, write_artifact) -> None:
    """Killed when the old artifact is moved aside and the new not yet in place: one is saved, whole."""
    stale = tmp_path / f"{place.SCRATCH_PREFIX}dead"
    write_artifact(stale / "fake-fp32", p1=1.0, cost_ms=1.0)
    shutil.copytree(stale / "fake-fp32", stale / f"fake-fp32{place.REPLACED}")
    with place.workplace(tmp_path, step):
        assert not stale.exists()
    assert verify(tmp_path / "fake-fp32").variant == "fake-fp32"


def test_leftovers_that_are_not_whole_are_not_saved(tmp_path: Path, write_artifact) -> None:
    """A stale folder whose files its manifest does not promise goes away."""
    stale = tmp_path / f"{place.SCRATCH_PREFIX}dead"
    write_artifact(stale / "fake-fp32", p1=1.0, cost_ms=1.0)
    (stale / "fake-fp32" / "model.onnx").write_bytes(b"cut")
    with place.workplace(tmp_path, step):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [place.LOCK_NAME]


def test_what_a_dead_build_finished_is_saved_and_marked(tmp_path: Path, write_artifact) -> None:
    """Whole artifacts go into free places, their profiles marked as measured alone; others stay."""
    stale = tmp_path / f"{place.SCRATCH_PREFIX}dead"
    write_artifact(tmp_path / "fake-fp32", p1=1.0, cost_ms=1.0)
    write_artifact(stale / "fake-fp32", p1=0.5, cost_ms=1.0)
    write_artifact(stale / "fake-int8", p1=0.99, cost_ms=0.5)
    assert not place.is_complete(tmp_path, ["fake-fp32"])  # there is something to save
    with place.workplace(tmp_path, step):
        assert not place.is_complete(tmp_path, ["fake-fp32", "fake-int8"])
        assert place.uncompared(tmp_path)
        place.mark_compared(tmp_path)
    assert place.is_complete(tmp_path, ["fake-fp32", "fake-int8"])
    assert not place.is_complete(tmp_path, ["fake-fp32", "fake-bf16"])
    assert verify(tmp_path / "fake-fp32").fidelity.p1 == 1.0


def test_artifacts_of_two_checkpoints_are_not_mixed(tmp_path: Path, write_artifact) -> None:
    """What a dead build made of another checkpoint goes away: a server takes one checkpoint only."""
    stale = tmp_path / f"{place.SCRATCH_PREFIX}dead"
    write_artifact(tmp_path / "fake-fp32", p1=1.0, cost_ms=1.0)
    manifest = write_artifact(stale / "fake-int8", p1=0.99, cost_ms=0.5)
    other = replace(manifest, checkpoint=replace(manifest.checkpoint, digest="1" * 64))
    write_manifest(stale / "fake-int8", other)
    with place.workplace(tmp_path, step):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [place.LOCK_NAME, "fake-fp32"]


def test_a_finished_variant_replaces_the_old_one(tmp_path: Path) -> None:
    """What was in place goes into the scratch folder, and with it."""
    (tmp_path / VARIANT).mkdir()
    (tmp_path / VARIANT / "old").touch()
    with place.workplace(tmp_path, step) as scratch:
        (scratch / VARIANT).mkdir()
        (scratch / VARIANT / "new").touch()
        place.put(scratch / VARIANT, tmp_path / VARIANT)
    assert [path.name for path in (tmp_path / VARIANT).iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [place.LOCK_NAME, VARIANT]


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    """A build that failed does not keep the next one waiting."""
    with pytest.raises(ZeroDivisionError), place.workplace(tmp_path, step):
        raise ZeroDivisionError
    with (tmp_path / place.LOCK_NAME).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
