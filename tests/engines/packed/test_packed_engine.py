"""The packed path against the padded one, in FP32 on the CPU: same weights, same vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from serve_app.engines.base import TokenIds, Vectors  # noqa: E402 - they need what is skipped for
from serve_app.engines.packed import opening  # noqa: E402
from serve_app.engines.packed.engine import PackedEngine  # noqa: E402
from serve_app.engines.pooling import make_head  # noqa: E402
from serve_app.engines.tokenization import Tokenizer  # noqa: E402
from serve_app.engines.torch_engine import TorchEngine, load_transformer  # noqa: E402
from serve_app.manifest import TOKENIZER_NAME, Pooling, verify  # noqa: E402
from tests.engines.packed.twins import HERE, packed_engine, padded_engine, tiny_facts  # noqa: E402

pytestmark = pytest.mark.model

GOLDEN = Path(__file__).parents[2] / "golden"
KINDS = ("Bert", "Roberta", "XLMRoberta", "Camembert")


@pytest.fixture
def engines(make_model: Any, make_facts: Any) -> tuple[TorchEngine, PackedEngine]:
    """Padded and packed, of equal weights."""
    return padded_engine(make_model()), packed_engine(make_model(), tiny_facts(make_facts))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_vectors_are_the_padded_ones(
    kind: str, make_model: Any, make_facts: Any, mixed_texts: list[TokenIds]
) -> None:
    """Each architecture's packed vectors are those of its own modules with padding, in the order given."""
    padded = padded_engine(make_model(kind)).embed(mixed_texts)
    packed = packed_engine(make_model(kind), tiny_facts(make_facts)).embed(mixed_texts)
    assert packed.dtype == np.float32
    np.testing.assert_allclose(packed, padded, atol=2e-6)


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_every_pooling_is_the_padded_one(
    pooling: Pooling, make_model: Any, make_facts: Any, mixed_texts: list[TokenIds]
) -> None:
    """Pooled by segment or under a mask, a text's vector is the same."""
    padded = padded_engine(make_model(), pooling).embed(mixed_texts)
    packed = packed_engine(make_model(), tiny_facts(make_facts, pooling)).embed(mixed_texts)
    np.testing.assert_allclose(packed, padded, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_close_to_fp32(
    dtype: str, make_model: Any, make_facts: Any, mixed_texts: list[TokenIds]
) -> None:
    """Both paths in half precision stay within 1e-3 of FP32 by cosine; FP16 by component too."""
    exact = padded_engine(make_model()).embed(mixed_texts)
    half = getattr(torch, dtype)
    packed = packed_engine(make_model().to(half), tiny_facts(make_facts)).embed(mixed_texts)
    padded = padded_engine(make_model().to(half)).embed(mixed_texts)
    for found in (packed, padded):
        assert (1 - (found * exact).sum(1)).max() <= 1e-3
    if dtype == "float16":
        np.testing.assert_allclose(packed, exact, atol=1e-3)
        np.testing.assert_allclose(packed, padded, atol=1e-3)


def test_a_vector_does_not_depend_on_its_neighbours(
    engines: tuple[TorchEngine, PackedEngine], mixed_texts: list[TokenIds]
) -> None:
    """Alone, among others, or in a call that is cut into many batches: one vector."""
    packed = engines[1]
    together = packed.embed(mixed_texts)
    alone = np.concatenate([packed.embed([text]) for text in mixed_texts])
    packed.most_tokens = 20
    cut = packed.embed(mixed_texts)
    np.testing.assert_allclose(alone, together, atol=2e-6)
    np.testing.assert_allclose(cut, together, atol=2e-6)


def test_a_second_call_may_start_before_the_first_is_fetched(
    engines: tuple[TorchEngine, PackedEngine], mixed_texts: list[TokenIds]
) -> None:
    """Two calls under way at once get each their own vectors."""
    packed = engines[1]
    first, second = packed.start(mixed_texts[:4]), packed.start(mixed_texts[4:])
    np.testing.assert_allclose(
        np.concatenate([first.vectors(), second.vectors()]), packed.embed(mixed_texts), atol=2e-6
    )


def test_a_head_follows_the_pooling(
    make_model: Any, make_facts: Any, mixed_texts: list[TokenIds]
) -> None:
    """A dense layer with an activation is applied to packed vectors as to padded ones."""
    draw = torch.Generator().manual_seed(1)
    weights = {"0.weight": torch.randn(8, 32, generator=draw)}
    heads = [make_head(("dense", "tanh"), dims=8, weights=weights) for _ in range(2)]
    padded = TorchEngine(make_model(), pooling="mean", pad_id=0, device="cpu", head=heads[0])
    packed = opening.pack(make_model(), tiny_facts(make_facts), head=heads[1], target=HERE)
    np.testing.assert_allclose(packed.embed(mixed_texts), padded.embed(mixed_texts), atol=2e-6)


def test_what_a_compiler_makes_runs_in_place_of_the_plain_module(
    make_model: Any, make_facts: Any, mixed_texts: list[TokenIds]
) -> None:
    """Batches go through the compiled form, whose bound of the lengths takes few values."""
    bounds = []

    def compile_(embedder: Any) -> Any:
        def forward(*parts: Any) -> Any:
            bounds.append(parts[-1])
            return embedder(*parts)

        return forward

    packed = packed_engine(make_model(), tiny_facts(make_facts), compile=compile_)
    found = np.concatenate([packed.embed([text]) for text in mixed_texts])
    assert set(bounds) <= {1, 2, 4, 8, 16, 32, 64}
    np.testing.assert_allclose(found, padded_engine(make_model()).embed(mixed_texts), atol=2e-6)


def test_the_real_checkpoint_packed_agrees_with_sentence_transformers(
    real_artifacts: Path,
) -> None:
    """all-MiniLM-L6-v2 through the packed path gives the golden vectors within 1e-3, in FP32 and FP16."""
    from converters.checkpoint import DEFAULT_CHECKPOINT, open_checkpoint

    checkpoint = open_checkpoint(DEFAULT_CHECKPOINT)
    verify(real_artifacts / "onnx-fp32")
    tokenizer = Tokenizer(
        real_artifacts / "onnx-fp32" / TOKENIZER_NAME, max_tokens=checkpoint.facts.max_tokens
    )
    golden: Vectors = np.load(GOLDEN / "golden.npz")["vectors"]
    texts = tokenizer.encode(
        json.loads((GOLDEN / "golden_texts.json").read_text(encoding="utf-8"))
    ).texts
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 1e-3)):
        packed = packed_engine(load_transformer(checkpoint.folder, dtype=dtype), checkpoint.facts)
        np.testing.assert_allclose(packed.embed(texts), golden, atol=tolerance)
