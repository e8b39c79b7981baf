"""Which variants are built when, and what keeps one off the ladder; no model and no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from converters import recipes
from converters.gates import GATES
from converters.recipes import DEFAULT_VARIANTS, RECIPES, choose
from serve_app.errors import ConversionError

Lack = Callable[..., None]


@pytest.fixture
def lack(monkeypatch: pytest.MonkeyPatch) -> Lack:
    """Make variants impossible here for the reason "no luck", and all others possible."""

    def make(*names: str) -> None:
        changed = {
            name: replace(
                recipe, unavailable=lambda lacks=name in names: "no luck" if lacks else None
            )
            for name, recipe in RECIPES.items()
        }
        monkeypatch.setattr(recipes, "RECIPES", changed)

    return make


def test_no_names_mean_all_that_can_be_built(lack: Lack) -> None:
    """Without names every recipe is chosen; what cannot be built is skipped with its reason."""
    lack("onnx-tensorrt")
    chosen, skipped = choose([])
    assert [*chosen, "onnx-tensorrt"] == list(RECIPES)
    assert skipped == {"onnx-tensorrt": "no luck"}


def test_the_default_set_is_small_and_skips_too(lack: Lack) -> None:
    """A first start builds a few variants, less those that this processor cannot run."""
    lack("openvino-bf16")
    chosen, skipped = choose([], otherwise=DEFAULT_VARIANTS)
    assert set(chosen) == set(DEFAULT_VARIANTS) - {"openvino-bf16"}
    assert len(DEFAULT_VARIANTS) < len(RECIPES)
    assert list(skipped) == ["openvino-bf16"]


def test_a_named_variant_is_built_or_refused(lack: Lack) -> None:
    """Names are kept in their order, once each; one that cannot be built here is an error."""
    lack("onnx-tensorrt")
    assert choose(["onnx-int8", "onnx-fp32", "onnx-int8"]) == (["onnx-int8", "onnx-fp32"], {})
    with pytest.raises(ConversionError, match="onnx-tensorrt cannot be built here: no luck"):
        choose(["onnx-fp32", "onnx-tensorrt"])


def test_an_unknown_name_is_told_the_known_ones() -> None:
    """A misspelt variant is named together with all that exist."""
    with pytest.raises(ConversionError, match=r"'onnx-int9'.*onnx-int8-dynamic"):
        choose(["onnx-int9"])


@pytest.mark.parametrize("name", RECIPES)
def test_every_precision_has_a_gate(name: str) -> None:
    """What a recipe's precision starts with has its row in the table of gates."""
    assert RECIPES[name].precision.partition("-")[0] in GATES


def test_variants_are_named_after_their_runtime() -> None:
    """A name starts with what runs it; TensorRT runs inside ONNX Runtime."""
    runtimes = {"tensorrt": "onnx"}
    for name, recipe in RECIPES.items():
        assert name.startswith(f"{runtimes.get(recipe.runtime, recipe.runtime)}-")


def test_tensorrt_says_all_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without driver, provider and library one line names all three; with them there is no reason."""
    to_tensorrt = pytest.importorskip(
        "converters.to_tensorrt", reason="onnxruntime is not installed"
    )
    monkeypatch.setattr(to_tensorrt, "_loads", lambda _: False)
    monkeypatch.setattr(to_tensorrt.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(to_tensorrt.ort, "get_available_providers", list)
    reason = to_tensorrt.missing()
    assert "\n" not in reason
    for part in ("libcuda.so.1", "onnxruntime-gpu", "pip install tensorrt"):
        assert part in reason
    monkeypatch.setattr(to_tensorrt, "_loads", lambda _: True)
    monkeypatch.setattr(to_tensorrt.ort, "get_available_providers", lambda: [to_tensorrt.PROVIDER])
    assert to_tensorrt.missing() is None
