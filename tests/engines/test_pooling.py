"""Poolings and heads against numbers worked out by hand, and padding that must not matter."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from serve_app.engines import pooling  # noqa: E402 - it needs torch
from serve_app.manifest import HeadStep, Pooling  # noqa: E402

pytestmark = pytest.mark.model

STATES = [[1.0, -1.0], [3.0, -5.0], [2.0, -3.0]]  # the last is padding in the first text below
BY_HAND = {
    "mean": [2.0, -3.0],
    "mean_sqrt_len": [4 / np.sqrt(2), -6 / np.sqrt(2)],
    "weightedmean": [(1 * 1 + 2 * 3) / 3, -(1 * 1 + 2 * 5) / 3],
    "max": [3.0, -1.0],
    "lasttoken": [3.0, -5.0],
    "cls": [1.0, -1.0],
}


@pytest.mark.parametrize("mode", get_args(Pooling))
def test_each_pooling_is_what_its_name_says(mode: Pooling) -> None:
    """Two tokens and one padding token give the vector worked out by hand."""
    pooled = pooling.pool(torch.tensor([STATES]), torch.tensor([[1, 1, 0]]), mode)
    np.testing.assert_allclose(pooled[0].numpy(), BY_HAND[mode], rtol=1e-6)


@pytest.mark.parametrize("mode", get_args(Pooling))
def test_loud_padding_does_not_matter(mode: Pooling) -> None:
    """Whatever states padding has, a text keeps the vector that it has alone."""
    padded = torch.tensor([[*STATES[:2], [1e6, 1e6]], STATES])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    alone = pooling.pool(torch.tensor([STATES[:2]]), torch.tensor([[1, 1]]), mode)
    torch.testing.assert_close(pooling.pool(padded, mask, mode)[:1], alone)


@pytest.mark.parametrize("mode", get_args(Pooling))
def test_half_precision_does_not_overflow(mode: Pooling) -> None:
    """The sum over 2000 loud tokens is beyond FP16, and still comes out finite."""
    states = torch.full((1, 2000, 2), 1000.0, dtype=torch.float16)
    pooled = pooling.pool(states, torch.ones(1, 2000, dtype=torch.int64), mode)
    assert pooled.dtype == torch.float32
    assert torch.isfinite(pooled).all()


def test_head_steps_run_in_order() -> None:
    """Unit length between two dense layers is not unit length after them."""
    rng = np.random.default_rng(0)
    first, bias, second = rng.normal(size=(3, 2)), rng.normal(size=3), rng.normal(size=(4, 3))
    weights = {"0.weight": first, "0.bias": bias, "3.weight": second}
    head = pooling.make_head(
        ("dense", "tanh", "normalize", "dense"),
        dims=4,
        weights={name: torch.tensor(w, dtype=torch.float32) for name, w in weights.items()},
    )
    vectors = rng.normal(size=(5, 2))
    middle = np.tanh(vectors @ first.T + bias)
    expected = middle / np.linalg.norm(middle, axis=1, keepdims=True) @ second.T
    found = head(torch.tensor(vectors, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("step", sorted(set(get_args(HeadStep)) - {"dense"}))
def test_every_step_can_be_made(step: HeadStep) -> None:
    """Each step that a manifest may name turns a vector into a finite one."""
    vectors = torch.tensor([[3.0, -4.0]])
    head = pooling.make_head([step], dims=1, weights={})
    found = head(vectors)
    assert found.shape == ((1, 1) if step == "truncate" else (1, 2))
    assert torch.isfinite(found).all()
    assert not torch.equal(found, vectors)


def test_a_dense_step_without_weights_is_refused() -> None:
    """There is no default for a weight."""
    with pytest.raises(KeyError, match=r"1\.weight"):
        pooling.make_head(("tanh", "dense"), dims=2, weights={"0.weight": torch.ones(2, 2)})


def test_vectors_have_unit_length_after_any_head() -> None:
    """A truncated vector is scaled to length 1 again."""

    class Model(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
            states = (
                input_ids[..., None] * torch.tensor([3.0, 4.0, 12.0]) * attention_mask[..., None]
            )
            return type("Output", (), {"last_hidden_state": states})

    head = pooling.make_head(["truncate"], dims=2, weights={})
    embedder = pooling.SentenceEmbedder(Model(), pooling="mean", head=head)
    found = embedder(torch.tensor([[1, 2]]), torch.tensor([[1, 1]]))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8]]))
