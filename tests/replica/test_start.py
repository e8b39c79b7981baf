"""A replica's start: the engine is warmed up, and held to what its manifest promises."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from serve_app.engines.base import TokenIds, Vectors
from serve_app.engines.fake_engine import FakeEngine
from serve_app.errors import ArtifactError
from serve_app.manifest import Manifest
from serve_app.replica import Replica
from tests.held_calls import DIMS
from tests.replica.held_thread import BATCH_TOKENS


def test_the_engine_is_warmed_up_before_the_first_call(
    replica: Replica, engine: FakeEngine
) -> None:
    """Each length up to the model's limit runs alone and as a full batch, so no request pays."""
    assert replica.state.queued_tokens == 0
    assert engine.batch_sizes == [1, BATCH_TOKENS // 8, 1, BATCH_TOKENS // 16]


class Long(FakeEngine):
    """Vectors of length 2."""

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        return 2 * super().embed(texts)


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        (FakeEngine(dims=DIMS - 1), r"shape \(7,\)"),
        (FakeEngine(dims=2 * DIMS), r"shape \(16,\)"),
        (Long(dims=DIMS), r"lengths up to 2\.000"),
    ],
)
def test_an_engine_that_breaks_its_manifest_is_refused_at_start(
    engine: FakeEngine, manifest: Manifest, told: str
) -> None:
    """Other dims or no unit length: the variant, the promise and what came are named."""
    with pytest.raises(ArtifactError, match=f"fake-int8 promises unit vectors of 8 dims.*{told}"):
        Replica(engine, manifest, name="r1")


def test_a_model_of_very_short_texts_starts(engine: FakeEngine, manifest: Manifest) -> None:
    """A limit below the shortest warm-up length is a limit like any other."""
    short = replace(manifest, checkpoint=replace(manifest.checkpoint, max_tokens=7))
    assert Replica(engine, short, name="r1").state.queued_tokens == 0
