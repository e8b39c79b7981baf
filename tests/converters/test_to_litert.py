"""LiteRT's INT8: which graphs there are, what is refused, and that vectors stay near FP32's."""

from __future__ import annotations

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: nothing can be converted")
pytest.importorskip("onnxruntime")

from converters import to_litert  # noqa: E402 - it needs torch
from converters.checkpoint import Checkpoint, read_checkpoint  # noqa: E402
from converters.fidelity import reference_engine  # noqa: E402
from serve_app.engines.base import Engine, TokenIds, open_engine  # noqa: E402
from serve_app.engines.pooling import SentenceEmbedder  # noqa: E402
from serve_app.errors import ArtifactError, ConversionError  # noqa: E402
from serve_app.manifest import Variant  # noqa: E402

pytestmark = pytest.mark.model
LACKS = to_litert.missing()
needs_litert = pytest.mark.skipif(LACKS is not None, reason=f"litert-int8 {LACKS}")


def variant(checkpoint: Checkpoint) -> Variant:
    return Variant(
        variant="litert-int8",
        runtime="litert",
        precision="int8",
        checkpoint=checkpoint.facts,
        tokenizer=checkpoint.tokenizer,
    )


def embedder(checkpoint: Checkpoint) -> SentenceEmbedder:
    return SentenceEmbedder(checkpoint.load_model(), pooling=checkpoint.facts.pooling)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return read_checkpoint(tiny_checkpoint, name="tiny")


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("litert")
    to_litert.write_int8(
        embedder(checkpoint), made / "model.tflite", max_tokens=checkpoint.facts.max_tokens
    )
    return made


@pytest.fixture
def engine(folder: Path, checkpoint: Checkpoint) -> Engine:
    return open_engine(folder, variant(checkpoint))


@pytest.fixture(scope="module")
def texts() -> list[TokenIds]:
    rng = np.random.default_rng(0)
    return [rng.integers(4, 100, n).astype(np.int32) for n in (1, 5, 8, 9, 13, 24)]


@pytest.mark.parametrize("max_tokens", [1, 8, 9, 256, 300, 2048])
def test_graphs_reach_the_limit_and_waste_little(max_tokens: int) -> None:
    """The longest graph is the checkpoint's limit, and none is over half longer than the one before."""
    found = to_litert.lengths(max_tokens)
    assert found[-1] == max_tokens
    assert found == sorted(set(found))
    assert all(after <= 1.5 * before for before, after in pairwise(found))


def test_says_which_packages_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without LiteRT's converter the reason names the packages and how to get them, in one line."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    reason = str(to_litert.missing())
    assert "litert_torch, ai_edge_quantizer, ai_edge_litert" in reason
    assert "pip install '.[litert-convert]'" in reason
    assert "\n" not in reason


def test_the_engine_says_what_is_missing(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without the runtime refuses the variant in one line that names the package."""
    monkeypatch.delitem(sys.modules, "serve_app.engines.litert_engine", raising=False)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(ArtifactError, match=r"litert-int8 needs the package 'ai_edge_litert"):
        open_engine(tmp_path, variant(checkpoint))


def test_very_long_checkpoints_are_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    """A limit that would fill memory while tracing is refused by number, and nothing is left."""
    with pytest.raises(ConversionError, match="up to 2048 tokens, the checkpoint takes 8192"):
        to_litert.write_int8(
            embedder(checkpoint), tmp_path / "model.tflite", max_tokens=4 * to_litert.LONGEST
        )
    assert not list(tmp_path.iterdir())


@needs_litert
def test_vectors_are_near_pytorchs(
    engine: Engine, checkpoint: Checkpoint, texts: list[TokenIds]
) -> None:
    """Texts of every length, graph lengths and others, keep their vectors up to INT8's rounding."""
    expected = reference_engine(checkpoint).embed(texts)
    assert (engine.embed(texts) * expected).sum(1).min() > 0.99


@needs_litert
def test_no_text_moves_another(engine: Engine, texts: list[TokenIds]) -> None:
    """In any batch a text has, to the bit, the vector it has alone."""
    alone = np.concatenate([engine.embed([ids]) for ids in texts])
    assert np.array_equal(engine.embed(texts), alone)


@needs_litert
def test_the_length_of_the_graph_does_not_matter(
    folder: Path, checkpoint: Checkpoint, texts: list[TokenIds]
) -> None:
    """Activations are rounded token by token: padding to the longest graph moves no vector."""
    from ai_edge_litert.interpreter import Interpreter

    from serve_app.engines.litert_engine import INPUTS, OUTPUT, SIGNATURE

    interpreter = Interpreter(str(folder / "model.tflite"), num_threads=1)
    vectors = []
    for tokens in (8, checkpoint.facts.max_tokens):
        row, mask = np.zeros((2, 1, tokens), np.int32)
        row[0, :5], mask[0, :5] = texts[1], 1
        run = interpreter.get_signature_runner(SIGNATURE.format(tokens))
        vectors.append(run(**dict(zip(INPUTS, (row, mask), strict=True)))[OUTPUT][0])
    assert 1 - float(np.dot(*vectors)) <= 1e-6


@needs_litert
def test_a_graph_too_short_for_the_checkpoint_is_refused(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    """A file whose longest graph is below the checkpoint's limit does not open."""
    to_litert.write_int8(embedder(checkpoint), tmp_path / "model.tflite", max_tokens=8)
    with pytest.raises(ArtifactError, match=r"takes 8 tokens, its texts have up to 24"):
        open_engine(tmp_path, variant(checkpoint))


@needs_litert
def test_layers_left_in_float_are_told(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quantiser that quantises nothing is found out by counting, and leaves no file."""
    monkeypatch.setattr(to_litert, "_quantise", lambda plain, out: plain.replace(out))
    with pytest.raises(ConversionError, match=r"only 0 of \d+ linear layers"):
        to_litert.write_int8(embedder(checkpoint), tmp_path / "model.tflite", max_tokens=8)
    assert not list(tmp_path.iterdir())


@needs_litert
def test_a_failed_conversion_is_one_line(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What LiteRT's converter raises becomes one line that names the model and what to do."""
    monkeypatch.setattr("litert_torch.signature", lambda *_: 1 / 0)
    with pytest.raises(ConversionError, match=r"cannot convert BertModel.*leave litert-int8") as e:
        to_litert.write_int8(embedder(checkpoint), tmp_path / "model.tflite", max_tokens=8)
    assert "\n" not in e.value.message
