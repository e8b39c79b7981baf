"""The overflow scan, on tiny models with one planted fault each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: nothing can be converted")
pytest.importorskip("transformers")

from converters import fidelity  # noqa: E402 - they need what is skipped for above
from converters.checkpoint import Checkpoint, read_checkpoint  # noqa: E402
from converters.gates import gate  # noqa: E402
from converters.overflow import FP16_MAX, Scan, scan  # noqa: E402
from converters.recipes import RECIPES, Notes  # noqa: E402
from converters.source import Source  # noqa: E402
from converters.to_fp16 import write_half  # noqa: E402
from serve_app.engines.base import Engine, TokenIds, open_engine  # noqa: E402
from serve_app.engines.torch_engine import TorchEngine  # noqa: E402
from serve_app.errors import ConversionError  # noqa: E402
from serve_app.manifest import Fidelity  # noqa: E402

pytestmark = pytest.mark.model

MakeCheckpoint = Callable[..., Path]

FP16 = RECIPES["torch-fp16"]


def loud_intermediate(model: Any) -> None:
    """Values of 1e5 between two layers that undo each other's scale."""
    layer = model.encoder.layer[0]
    layer.intermediate.dense.weight *= 1e5
    layer.output.dense.weight *= 1e-5


def read(folder: Path, texts: list[str]) -> tuple[Checkpoint, list[TokenIds], Source]:
    checkpoint = read_checkpoint(folder, name="tiny")
    ids = fidelity.tokenize(checkpoint, texts)
    return checkpoint, ids, Source(checkpoint, ids, folder)


def scanned(folder: Path, texts: list[str]) -> Scan:
    checkpoint, ids, source = read(folder, texts)
    return scan(checkpoint.load_model(), source.batches(ids))


def measured(checkpoint: Checkpoint, engine: Engine, ids: list[TokenIds]) -> Fidelity:
    reference = fidelity.embed_sorted(fidelity.reference_engine(checkpoint), ids)
    return fidelity.measure(engine, reference, ids)


def test_plain_half_fails_where_the_scan_passes(
    make_checkpoint: MakeCheckpoint, tiny_texts: list[str], tmp_path: Path
) -> None:
    """A layer that overflows FP16 makes plain `half()` miss the gate; kept in FP32, it passes."""
    checkpoint, ids, source = read(make_checkpoint(loud_intermediate), tiny_texts)
    plain = TorchEngine(checkpoint.load_model().half(), pooling="mean", pad_id=0, device="cpu")
    assert "some vectors are not finite" in str(gate("fp16", measured(checkpoint, plain, ids)))

    kept = write_half(checkpoint, tmp_path, batches=source.batches(ids))
    assert kept == ("encoder.layer.0",)
    variant = FP16.variant("torch-fp16", checkpoint, notes=Notes(kept_fp32=kept))
    found = measured(checkpoint, open_engine(tmp_path, variant), ids)
    assert gate("fp16", found) is None
    assert found.p1 > 0.9999


def test_the_ranges_are_those_of_the_model(
    make_checkpoint: MakeCheckpoint, tiny_texts: list[str]
) -> None:
    """Every layer with weights is listed with its ranges, and the planted one shows."""
    layers = {
        layer.name: layer
        for layer in scanned(make_checkpoint(loud_intermediate), tiny_texts).layers
    }
    planted = layers["encoder.layer.0.intermediate.dense"]
    assert planted.output > FP16_MAX
    assert layers["encoder.layer.0.output.dense"].input == pytest.approx(planted.output, rel=0.5)
    assert 0 < layers["encoder.layer.1.intermediate.dense"].output < 100
    linears = ("dense", "query", "key", "value")
    found = [n for n in layers if n.startswith("encoder.") and n.endswith(linears)]
    assert len(found) == 2 * 6


def test_a_sound_model_is_halved_whole(tiny_checkpoint: Path, tiny_texts: list[str]) -> None:
    """Where nothing overflows or drifts, nothing is kept, and errors are those of rounding."""
    found = scanned(tiny_checkpoint, tiny_texts)
    assert found.kept == {}
    assert max(layer.error for layer in found.layers) < 1e-3


def test_weights_too_small_for_fp16_are_kept(
    make_checkpoint: MakeCheckpoint, tiny_texts: list[str]
) -> None:
    """A layer whose weights FP16 rounds to zero is kept by itself, for its error."""

    def fade(model: Any) -> None:
        model.encoder.layer[1].output.dense.weight *= 1e-8

    kept = scanned(make_checkpoint(fade), tiny_texts).kept
    assert list(kept) == ["encoder.layer.1.output.dense"]
    assert "FP16 error" in kept["encoder.layer.1.output.dense"]


def test_attention_scores_are_seen(make_checkpoint: MakeCheckpoint, tiny_texts: list[str]) -> None:
    """Queries and keys that fit, and whose products do not, keep their attention in FP32."""

    def shout(model: Any) -> None:
        attention = model.encoder.layer[0].attention.self
        attention.query.weight *= 1e3
        attention.key.weight *= 1e3

    kept = scanned(make_checkpoint(shout), tiny_texts).kept
    assert list(kept) == ["encoder.layer.0.attention.self"]
    assert "attention scores" in kept["encoder.layer.0.attention.self"]


def test_overflow_between_all_modules_is_refused(
    make_checkpoint: MakeCheckpoint, tiny_texts: list[str]
) -> None:
    """When what the outermost modules exchange overflows, the error says what to build instead."""

    def boom(model: Any) -> None:
        model.embeddings.LayerNorm.weight *= 1e6

    with pytest.raises(ConversionError, match=r"overflows between modules.*BF16"):
        scanned(make_checkpoint(boom), tiny_texts)
