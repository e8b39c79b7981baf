"""A replica whose engine's thread the test holds."""

from pathlib import Path

import pytest

from serve_app import replica as replica_module
from serve_app.engines.fake_engine import FakeEngine
from serve_app.manifest import Manifest, read_manifest
from serve_app.replica import Replica
from tests.held_calls import DIMS
from tests.replica.held_thread import HeldThread


@pytest.fixture
def manifest(artifacts: Path) -> Manifest:
    return read_manifest(artifacts / "fake-int8")


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(dims=DIMS)


@pytest.fixture
def replica(engine: FakeEngine, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> Replica:
    monkeypatch.setattr(replica_module, "ThreadPoolExecutor", HeldThread)
    return Replica(engine, manifest, name="r1")


@pytest.fixture
def thread(replica: Replica) -> HeldThread:
    assert isinstance(replica._thread, HeldThread)
    return replica._thread
