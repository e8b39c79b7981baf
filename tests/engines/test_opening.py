"""Opening an engine: the manifest's profile where it fits, one of the replica's own elsewhere."""

import fcntl
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.engines import opening
from serve_app.engines.measure import QUICK_BUDGET_S
from serve_app.engines.opening import open_profiled
from serve_app.manifest import Manifest, read_manifest
from tests.engines.clocked import Clocked

HERE = "this machine, 2 cores"
FOLDER = Path("nowhere")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Clocked:
    """What opens, on its own clock, after half a second; this machine has a name that is known."""
    engine = Clocked(base_ms=2.0, per_token_ms=0.5)

    def open_engine(*_: object, **__: object) -> Clocked:
        engine.now_ms += 500
        return engine

    monkeypatch.setattr(opening, "open_engine", open_engine)
    monkeypatch.setattr(opening, "hardware_name", lambda device: {"cpu": HERE}[device])
    return engine


@pytest.fixture
def manifest(artifacts: Path) -> Manifest:
    """Measured on this machine, with one thread."""
    manifest = read_manifest(artifacts / "fake-int8")
    return _measured(manifest, hardware=HERE)


def _measured(manifest: Manifest, **changes: Any) -> Manifest:
    return replace(manifest, profile=replace(manifest.profile, **changes))


def test_a_profile_that_fits_is_not_measured_again(engine: Clocked, manifest: Manifest) -> None:
    """On the hardware of the build a replica opens its engine, and runs nothing."""
    opened = open_profiled(FOLDER, manifest, threads=1, device="cpu", now_s=engine.now_s)
    assert (opened.engine, opened.measured) == (engine, None)
    assert engine.now_ms == 500


@pytest.mark.parametrize(
    ("changes", "threads"),
    [({"hardware": "another machine"}, 1), ({"device": "cuda"}, 1), ({}, 2)],
    ids=["hardware", "device", "threads"],
)
def test_what_does_not_fit_is_measured_within_the_budget(
    engine: Clocked, manifest: Manifest, changes: dict[str, Any], threads: int
) -> None:
    """Other hardware, device or threads: the engine's own pace, found in three seconds at most."""
    foreign = _measured(manifest, **changes)
    opened = open_profiled(FOLDER, foreign, threads=threads, device="cpu", now_s=engine.now_s)
    found = opened.measured
    assert found is not None
    assert (found.hardware, found.device, found.threads) == (HERE, "cpu", threads)
    assert (found.base_ms, found.per_token_ms) == (pytest.approx(2.0), pytest.approx(0.5))
    assert found.load_ms == pytest.approx(500)
    assert found.resident_bytes > 0
    assert engine.now_s() - 0.5 <= QUICK_BUDGET_S


def test_replicas_of_one_machine_take_turns(engine: Clocked, manifest: Manifest) -> None:
    """While one is measured, the lock that the next one waits for is taken; then it is free."""
    foreign = _measured(manifest, hardware="another machine")
    taken: list[bool] = []
    inner = engine.embed

    def embed(texts: Any) -> Any:
        taken.append(not _is_free())
        return inner(texts)

    engine.embed = embed  # type: ignore[method-assign]
    open_profiled(FOLDER, foreign, threads=1, device="cpu", now_s=engine.now_s)
    assert taken
    assert all(taken)
    assert _is_free()


def _is_free() -> bool:
    with Path(opening.__file__).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_where_nothing_can_be_locked_it_is_measured_all_the_same(
    engine: Clocked, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without locks is no reason not to serve."""

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    foreign = _measured(manifest, hardware="another machine")
    opened = open_profiled(FOLDER, foreign, threads=1, device="cpu", now_s=engine.now_s)
    assert opened.measured is not None


def test_a_new_profile_is_told_in_one_line(
    engine: Clocked, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    """The line names the variant, the hardware of its profile and that of the replica."""
    foreign = _measured(manifest, hardware="another machine")
    with caplog.at_level(logging.WARNING):
        open_profiled(FOLDER, foreign, threads=1, device="cpu", now_s=engine.now_s)
    (line,) = caplog.messages
    assert "\n" not in line
    assert all(word in line for word in ("fake-int8", "'another machine'", f"'{HERE}'"))


def test_a_profile_that_fits_is_not_worth_a_line(
    engine: Clocked, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    """The usual case is silent."""
    open_profiled(FOLDER, manifest, threads=1, device="cpu", now_s=engine.now_s)
    assert caplog.messages == []
