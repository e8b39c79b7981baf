"""ONNX Runtime on a GPU, as far as that can be said without one: binding, cuts, and what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from serve_app.engines import onnx_engine  # noqa: E402 - it needs what is skipped for
from serve_app.engines.base import open_engine  # noqa: E402
from serve_app.engines.onnx_engine import BoundOnnxEngine, OnnxEngine  # noqa: E402
from serve_app.errors import ArtifactError  # noqa: E402
from serve_app.manifest import Runtime, Tokenizer, Variant  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a graph that gives each text its number of tokens and the sum of their ids."""
    make, numbers = onnx.helper, onnx.TensorProto
    nodes = [
        make.make_node("Mul", ["input_ids", "attention_mask"], ["kept"]),
        make.make_node("ReduceSum", ["attention_mask", "axis"], ["count"], keepdims=1),
        make.make_node("ReduceSum", ["kept", "axis"], ["total"], keepdims=1),
        make.make_node("Concat", ["count", "total"], ["both"], axis=1),
        make.make_node("Cast", ["both"], ["sentence_embedding"], to=numbers.FLOAT),
    ]
    inputs = [
        make.make_tensor_value_info(name, numbers.INT64, ["texts", "tokens"])
        for name in onnx_engine.INPUTS
    ]
    output = make.make_tensor_value_info("sentence_embedding", numbers.FLOAT, ["texts", 2])
    axis = make.make_tensor("axis", numbers.INT64, [1], [1])
    graph = make.make_graph(nodes, "counting", inputs, [output], [axis])
    folder = tmp_path_factory.mktemp("model")
    built = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)
    onnx.save(built, str(folder / "model.onnx"))
    return folder


@pytest.fixture
def session(model: Path):
    return ort.InferenceSession(str(model / "model.onnx"), providers=["CPUExecutionProvider"])


TEXTS = [np.full(n, n, dtype=np.int32) for n in (3, 1, 7, 2, 5)]


@pytest.mark.parametrize("max_texts", [None, 1, 2, 5, 9])
def test_bound_memory_gives_what_plain_runs_give(session, max_texts: int | None) -> None:
    """Bound inputs and outputs, in one batch or in cuts, change no vector and no order."""
    plain = OnnxEngine(session, pad_id=0).embed(TEXTS)
    bound = BoundOnnxEngine(session, pad_id=0, device="cpu", max_texts=max_texts).embed(TEXTS)
    assert bound.dtype == np.float32
    np.testing.assert_array_equal(bound, plain)
    np.testing.assert_array_equal(bound, [[len(t), t.sum()] for t in TEXTS])


def test_vectors_of_one_run_survive_the_next(session) -> None:
    """What came back is the caller's own: the next run writes elsewhere."""
    engine = BoundOnnxEngine(session, pad_id=0, device="cpu")
    first = engine.embed(TEXTS[:2])
    before = first.copy()
    engine.embed(TEXTS[2:4])
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize(("runtime", "more"), [("onnx", ""), ("tensorrt", " and TensorRT")])
def test_without_its_provider_a_gpu_variant_is_refused(
    model: Path, make_facts, runtime: Runtime, more: str
) -> None:
    """Asked for a GPU, it never runs on the CPU unnoticed: one line says what is missing."""
    wanted = onnx_engine.CUDA if runtime == "onnx" else onnx_engine.TENSORRT
    if wanted in ort.get_available_providers():
        pytest.skip(f"this ONNX Runtime has {wanted}")
    variant = Variant(
        variant="onnx-fp16",
        runtime=runtime,
        precision="fp16",
        checkpoint=make_facts(dims=2),
        tokenizer=Tokenizer(digest="0" * 64, pad_id=0, vocab_size=9),
    )
    with pytest.raises(ArtifactError, match=f"needs a GPU, onnxruntime-gpu{more}$"):
        open_engine(model, variant, device="cuda")
