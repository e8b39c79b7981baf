"""The folder that tests of checkpoints read, change and damage."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole sentence-transformers folder of a BERT with mean pooling."""
    from tests.converters.checkpoints.folders import write_folder

    place = tmp_path / "org" / "tiny-model"
    write_folder(place)
    return place
