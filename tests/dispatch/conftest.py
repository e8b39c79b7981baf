"""A lane to one variant, whose calls the test answers."""

from pathlib import Path

import pytest

from serve_app.dispatch import Lane
from serve_app.manifest import Manifest, read_manifest
from tests.held_calls import HeldTransport, lane_of


@pytest.fixture
def transport() -> HeldTransport:
    return HeldTransport()


@pytest.fixture
def manifest(artifacts: Path) -> Manifest:
    return read_manifest(artifacts / "fake-int8")


@pytest.fixture
def lane(manifest: Manifest, transport: HeldTransport) -> Lane:
    return lane_of(manifest, transport)
