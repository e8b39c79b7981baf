"""FP32 weights under autocast, and modules kept in FP32: both through the engine that serves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: nothing can be converted")
pytest.importorskip("transformers")

from converters import fidelity  # noqa: E402 - they need what is skipped for above
from converters.checkpoint import Checkpoint, read_checkpoint  # noqa: E402
from converters.recipes import MIXED, RECIPES  # noqa: E402
from converters.to_torch import write_weights  # noqa: E402
from serve_app.engines.base import open_engine  # noqa: E402
from serve_app.engines.mixed_precision import halve  # noqa: E402
from serve_app.errors import ArtifactError  # noqa: E402
from serve_app.manifest import Variant  # noqa: E402

pytestmark = pytest.mark.model

Mixed = tuple[Path, Variant, Checkpoint]


@pytest.fixture(scope="module")
def mixed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    folder = tmp_path_factory.mktemp("mixed")
    checkpoint = read_checkpoint(tiny_checkpoint, name="tiny")
    write_weights(checkpoint, folder, dtype=torch.float32)
    variant = RECIPES[MIXED].variant(MIXED, checkpoint)
    return folder, variant, checkpoint


def test_mixed_keeps_the_engine_contract(mixed: Mixed, tiny_texts: list[str]) -> None:
    """Float32 unit vectors in the order of the texts, close to FP32 alone and among batch-mates."""
    folder, variant, checkpoint = mixed
    engine = open_engine(folder, variant)
    ids = fidelity.tokenize(checkpoint, tiny_texts)
    vectors = engine.embed(ids)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(ids), checkpoint.facts.dims)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    np.testing.assert_allclose(engine.embed(ids[::-1])[::-1], vectors, atol=2e-3)
    reference = fidelity.embed_sorted(fidelity.reference_engine(checkpoint), ids)
    found = fidelity.measure(engine, reference, ids)
    assert found.p1 > 0.9999
    assert found.batch_drift < 1e-4


def test_mixed_runs_in_fp16_on_fp32_weights(mixed: Mixed, tiny_texts: list[str]) -> None:
    """The products are FP16's, not FP32's: vectors differ from those of the same file in FP32."""
    folder, variant, checkpoint = mixed
    ids = fidelity.tokenize(checkpoint, tiny_texts[:4])
    fp32 = open_engine(folder, replace(variant, precision="fp32", autocast=False)).embed(ids)
    apart = np.abs(open_engine(folder, variant).embed(ids) - fp32).max()
    assert 1e-6 < apart < 1e-2


def test_only_the_kept_module_stays_fp32(mixed: Mixed) -> None:
    """All parameters are halved but those inside the kept module, whose neighbours see FP16."""
    model = mixed[2].load_model()
    halve(model, kept_fp32=["encoder.layer.0.output"])
    full = {name for name, weight in model.named_parameters() if weight.dtype == torch.float32}
    assert full == {
        f"encoder.layer.0.output.{part}.{kind}"
        for part in ("dense", "LayerNorm")
        for kind in ("weight", "bias")
    }
    states = model(torch.tensor([[2, 5, 3]])).last_hidden_state
    assert states.dtype == torch.float16


def test_an_unknown_kept_module_is_refused(mixed: Mixed) -> None:
    """A manifest that keeps a module the model lacks is refused by that name."""
    folder, variant, _ = mixed
    with pytest.raises(ArtifactError, match=r"kept_fp32 names 'decoder\.0'"):
        open_engine(folder, replace(variant, autocast=False, kept_fp32=("decoder.0",)))
