"""A replica whose engine's threads the test holds."""

from pathlib import Path

import pytest

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
def streams() -> int:
    return 1


@pytest.fixture
def replica(engine: FakeEngine, manifest: Manifest, streams: int) -> Replica:
    """Warmed up by real threads, which the test's takes the place of."""
    found = Replica(engine, manifest, name="r1", streams=streams)
    found._threads = HeldThread()
    return found


@pytest.fixture
def thread(replica: Replica) -> HeldThread:
    assert isinstance(replica._threads, HeldThread)
    return replica._threads
