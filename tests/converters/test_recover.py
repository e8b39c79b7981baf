"""Quantisation-aware recovery on a tiny model."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: nothing can be converted")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")

from converters import fake_quantisation, fidelity, recover  # noqa: E402 - they need what is skipped for above
from converters.calibration import INPUT_NAMES, TokenBatch, distance, open_session  # noqa: E402
from converters.checkpoint import Checkpoint, read_checkpoint  # noqa: E402
from converters.source import Source  # noqa: E402
from converters.to_int8 import quantize_static  # noqa: E402
from serve_app.errors import ConversionError  # noqa: E402

pytestmark = pytest.mark.model

STEPS = 200
SECONDS = 2.0


@pytest.fixture(scope="module")
def source(
    tiny_checkpoint: Path, tiny_texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Source:
    checkpoint = read_checkpoint(tiny_checkpoint, name="tiny")
    ids = fidelity.tokenize(checkpoint, tiny_texts)
    return Source(checkpoint, ids, tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def batches(source: Source) -> list[TokenBatch]:
    return source.batches(source.calibration)


def vectors(model: torch.nn.Module, batch: TokenBatch) -> torch.Tensor:
    ids, mask = (torch.from_numpy(part) for part in batch)
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return torch.nn.functional.normalize(recover.pool(states, mask, "mean"), dim=-1)


def test_the_student_rounds_as_the_engine_will(
    source: Source, batches: list[TokenBatch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights rounded to the nearest, its errors are those of the real INT8 graph.

    Folding is off: it enters the choice of the scales before it, and other scales round otherwise.
    So is the correction of biases, which is for afterwards.
    """
    from converters import gptq, smoothing, to_int8

    monkeypatch.setattr(
        to_int8, "correct_biases", lambda _, file, out, **__: shutil.copy(file, out)
    )
    monkeypatch.setattr(gptq, "round_weight", lambda w, _, __: np.zeros(w.shape, np.int8))
    monkeypatch.setattr(smoothing, "_fold_into_values", lambda *_: False)
    quantize_static(source.onnx_fp32, tmp_path / "int8.onnx", batches=batches)
    batch = batches[0]
    feeds = dict(zip(INPUT_NAMES, batch, strict=True))
    (real,) = open_session(str(tmp_path / "int8.onnx")).run(None, feeds)
    model = source.checkpoint.load_model()
    exact = vectors(model, batch).numpy()
    parts = [part for b in batches for part in recover._small(b)]
    with fake_quantisation.fake_quantised(model, parts), torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, fake_quantisation.FakeQuantised):
                smooth = layer.linear.weight * layer.scale
                step = smooth.abs().amax(dim=1, keepdim=True) / 127
                layer.linear.weight.copy_((smooth / step).round() * step / layer.scale)
        fake = vectors(model, batch).numpy()
    errors = (fake - exact, real - exact)
    assert np.linalg.norm(errors[0] - errors[1]) < 0.3 * np.linalg.norm(errors[1])


def test_distillation_brings_the_rounded_model_closer(
    source: Source, batches: list[TokenBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss falls, only what is learned changes, and the linear layers are plain again."""
    ticks = itertools.count()  # a clock on which each step takes as long, on whatever machine
    clock = SimpleNamespace(monotonic=lambda: next(ticks) * SECONDS / STEPS)
    monkeypatch.setattr(recover, "time", clock)
    model, before = source.checkpoint.load_model(), source.checkpoint.load_model()
    kinds = {name: type(module) for name, module in model.named_modules()}
    done = recover.distil(model, batches, pooling="mean", minutes=SECONDS / 60)
    assert done.steps == STEPS - 1  # the clock is read once before the first
    assert done.last_loss < 0.9 * done.first_loss
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True):
        if new.ndim > 1:
            assert torch.equal(new, old), name
    learned = "encoder.layer.0.output.dense.bias"
    assert not torch.equal(model.get_parameter(learned), before.get_parameter(learned))


def plain_int8(source: Source, batches: list[TokenBatch], folder: Path) -> Path:
    artifact = folder / "onnx-int8"
    artifact.mkdir()
    quantize_static(source.onnx_fp32, artifact / "model.onnx", batches=batches)
    return artifact / "model.onnx"


def recover_into(
    source: Source, checkpoint: Checkpoint, file: Path, batches: list[TokenBatch]
) -> recover.Recovery:
    return recover.recover(
        checkpoint, file, fp32_file=source.onnx_fp32, batches=batches, minutes=SECONDS / 60
    )


def test_a_recovery_that_does_harm_is_not_kept(
    source: Source, batches: list[TokenBatch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When held-out texts are farther from FP32 than without it, the graph stays what it was."""
    file = plain_int8(source, batches, tmp_path)
    plain = file.read_bytes()

    def scramble(model: torch.nn.Module, *_: object, **__: object) -> recover.Distilled:
        with torch.no_grad():
            model.get_parameter("encoder.layer.0.output.dense.weight").normal_()
        return recover.Distilled(steps=1, texts=1, first_loss=1.0, last_loss=1.0)

    monkeypatch.setattr(recover, "distil", scramble)
    done = recover_into(source, source.checkpoint, file, batches)
    assert file.read_bytes() == plain
    assert (done.plain / "model.onnx").read_bytes() == plain


def test_a_recovered_graph_is_integer_and_no_farther(
    source: Source, batches: list[TokenBatch], tmp_path: Path
) -> None:
    """What is written is an INT8 graph, and on held-out texts at least as close as before."""
    from converters.calibration import split
    from converters.to_int8 import count_integer_products

    file = plain_int8(source, batches, tmp_path)
    done = recover_into(source, source.checkpoint, file, batches)
    judge = split(batches)[1]
    assert count_integer_products(file) == 2 * 6
    plain = distance(source.onnx_fp32, done.plain / "model.onnx", judge)
    assert distance(source.onnx_fp32, file, judge) <= plain
    assert done.texts == 45  # of 60, every fourth judges


def test_divergence_is_an_error(
    source: Source, batches: list[TokenBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses that are not finite end in one line, not in an artifact."""
    monkeypatch.setattr(recover, "LEARNING_RATE", 1e30)
    with pytest.raises(ConversionError, match="diverged: build without --recover"):
        recover.distil(
            source.checkpoint.load_model(), batches, pooling="mean", minutes=SECONDS / 60
        )
