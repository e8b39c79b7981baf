"""What the table of variants says of speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich", reason="rich comes with the converters")

from converters.table import speed, yardstick_of
from serve_app.manifest import Manifest


def _manifest(folder: Path, write_artifact: Callable[..., Manifest], **profile: Any) -> Manifest:
    found = write_artifact(folder, p1=1.0, cost_ms=0.2)
    return replace(found, profile=replace(found.profile, **profile))


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        pytest.param({}, "1.00×", id="itself"),
        pytest.param({"per_token_ms": 0.1}, "2.00×", id="twice as fast"),
        pytest.param({"threads": 2}, "1.00× (threads: 2)", id="by more threads"),
        pytest.param({"threads": 2, "device": "cuda"}, "1.00×", id="on a GPU"),
    ],
)
def test_a_speed_names_threads_that_the_yardstick_had_not(
    tmp_path: Path, write_artifact: Callable[..., Manifest], profile: dict[str, Any], expected: str
) -> None:
    """Two threads that do what one does are no equal."""
    yardstick = _manifest(tmp_path / "onnx-fp32", write_artifact)
    other = _manifest(tmp_path / "other", write_artifact, **profile)
    assert yardstick_of([other, yardstick]) == yardstick.profile
    assert speed(other.profile, yardstick.profile) == expected


def test_without_the_yardstick_no_speed_is_told(
    tmp_path: Path, write_artifact: Callable[..., Manifest]
) -> None:
    """It may not have been built."""
    other = _manifest(tmp_path / "other", write_artifact)
    assert yardstick_of([other]) is None
    assert speed(other.profile, None) == ""
