"""Existing ONNX files, as hubs ship them, become variants; what does not fit is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: nothing can be converted")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
transformers = pytest.importorskip("transformers")

from converters import to_onnx  # noqa: E402 - they need what is skipped for above
from converters.adopt import adoption, precision_of, read_onnx  # noqa: E402
from converters.onnx_contract import adopt  # noqa: E402
from converters.to_onnx_fp16 import to_fp16  # noqa: E402
from serve_app.errors import ConversionError  # noqa: E402
from serve_app.manifest import Pooling  # noqa: E402

pytestmark = pytest.mark.model

HIDDEN, VOCABULARY = 32, 100
TYPED = ("input_ids", "attention_mask", "token_type_ids")
Export = Callable[..., Path]
Adopt = Callable[..., Path]


class Raw(torch.nn.Module):
    """A transformer as hubs export it: states per token and a pooler's output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=32,
            initializer_range=0.2,
            attn_implementation="eager",
        )
        self.bert = transformers.BertModel(config)

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        out = self.bert(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )
        return out.last_hidden_state, out.pooler_output


RAW = Raw().eval()


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Write the raw transformer to a file, with hub-like choices."""

    def make(
        *,
        inputs: tuple[str, ...] = TYPED,
        outputs: tuple[str, str] = ("last_hidden_state", "pooler_output"),
        opset: int = 14,
        fixed: bool = False,
        dtype: torch.dtype = torch.int64,
    ) -> Path:
        file = tmp_path / "hub.onnx"
        axes = {name: {0: "batch_size", 1: "sequence"} for name in inputs}
        axes |= {outputs[0]: {0: "batch_size", 1: "sequence"}, outputs[1]: {0: "batch_size"}}
        with to_onnx.quiet():
            torch.onnx.export(
                RAW,
                tuple(torch.ones((2, 7), dtype=dtype) for _ in inputs),
                str(file),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes=None if fixed else axes,
                opset_version=opset,
                dynamo=False,
            )
        return file

    return make


@pytest.fixture
def adopted(make_facts) -> Adopt:
    """Adopt a file for a checkpoint of 32 dims, pooled by mean, or as told."""

    def make(file: Path, **changes: object) -> Path:
        out = file.with_name("model.onnx")
        adopt(read_onnx(file), out, facts=make_facts(**{"dims": HIDDEN, **changes}))
        return out

    return make


def batch() -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(1).integers(1, VOCABULARY, (3, 9))
    mask = (np.arange(9) < np.array([9, 4, 1])[:, None]).astype(np.int64)
    return ids * mask, mask


def embed(file: Path) -> np.ndarray:
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(to_onnx.INPUT_NAMES)
    assert [o.name for o in session.get_outputs()] == [to_onnx.OUTPUT_NAME]
    return session.run(None, dict(zip(to_onnx.INPUT_NAMES, batch(), strict=True)))[0]


def expected(pooling: Pooling = "mean") -> np.ndarray:
    embedder = to_onnx.SentenceEmbedder(RAW.bert, pooling=pooling).eval()
    with torch.inference_mode():
        return embedder(*(torch.from_numpy(array) for array in batch())).numpy()


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_states_per_token_are_pooled_as_the_checkpoint_says(
    export: Export, adopted: Adopt, pooling: Pooling
) -> None:
    """A hub's file gives the checkpoint's own vectors, its pooler output and type ids passed over."""
    np.testing.assert_allclose(
        embed(adopted(export(), pooling=pooling)), expected(pooling), atol=1e-5
    )


@pytest.mark.parametrize("opset", [11, 17, 20])
def test_old_and_new_opsets(export: Export, adopted: Adopt, opset: int) -> None:
    """The pooling is written in the file's own opset."""
    file = adopted(export(opset=opset))
    versions = {o.domain: o.version for o in onnx.load(str(file)).opset_import}
    assert versions[""] == opset
    np.testing.assert_allclose(embed(file), expected(), atol=1e-5)


def test_without_type_ids_and_with_int32(export: Export, adopted: Adopt) -> None:
    """Two inputs are enough, and 32-bit ones are fed from the contract's 64-bit ones."""
    file = export(inputs=TYPED[:2], dtype=torch.int32)
    np.testing.assert_allclose(embed(adopted(file)), expected(), atol=1e-5)


def test_a_sentence_embedding_is_taken_as_it_is(export: Export, adopted: Adopt) -> None:
    """An output per text needs no pooling, only unit length, and it may have the contract's name."""
    file = export(outputs=("token_embeddings", "sentence_embedding"))
    with torch.inference_mode():
        pooled = RAW(*(torch.from_numpy(array) for array in batch()))[1].numpy()
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(adopted(file)), pooled, atol=1e-5)


def test_fp16_and_dynamic_int8_are_recognised(
    export: Export, adopted: Adopt, tmp_path: Path
) -> None:
    """Precision is read from nodes and weights, and each kind still gives close vectors."""
    from onnxruntime.quantization import quantize_dynamic

    plain = export()
    half, integer = tmp_path / "half.onnx", tmp_path / "integer.onnx"
    to_fp16(plain, half)
    quantize_dynamic(plain, integer)
    found = [precision_of(read_onnx(file)) for file in (plain, half, integer)]
    assert found == ["fp32", "fp16", "int8-dynamic"]
    for file in (half, integer):
        assert (embed(adopted(file)) * expected()).sum(axis=1).min() > 0.99


def test_external_data_is_taken_along(export: Export, adopted: Adopt) -> None:
    """Weights in a file beside the graph are found, and without that file it is no model."""
    file = export()
    outside = file.with_name("outside.onnx")
    onnx.save(onnx.load(str(file)), str(outside), save_as_external_data=True, location="w.data")
    np.testing.assert_allclose(embed(adopted(outside)), expected(), atol=1e-5)
    outside.with_name("w.data").unlink()
    with pytest.raises(ConversionError, match=r"outside\.onnx: not an ONNX model"):
        read_onnx(outside)


def test_names_its_variant_after_the_precision(export: Export) -> None:
    """By default `onnx-imported-<precision>`; a built variant's name and a path are refused."""
    file = export()
    (name,) = adoption(file)
    assert name == "onnx-imported-fp32"
    assert list(adoption(file, variant="onnx-optimum")) == ["onnx-optimum"]
    for taken in ("onnx-int8", "../x", "A:b"):
        with pytest.raises(ConversionError, match="--variant-name"):
            adoption(file, variant=taken)


@pytest.mark.parametrize(
    ("choices", "dims", "problem"),
    [
        ({}, 48, "last_hidden_state has 32 dims, and tiny has 48"),
        ({"outputs": ("logits", "scores")}, HIDDEN, "no output to take vectors from.*logits"),
        ({"inputs": ("tokens", "attention_mask")}, HIDDEN, "inputs are tokens, attention_mask"),
        ({"fixed": True}, HIDDEN, "input input_ids has a fixed axis"),
    ],
)
def test_what_does_not_fit_is_refused(
    export: Export, adopted: Adopt, choices: dict[str, object], dims: int, problem: str
) -> None:
    """Wrong dims, unknown outputs or inputs, and fixed axes: one line each, and no file."""
    file = export(**choices)
    with pytest.raises(ConversionError, match=problem) as caught:
        adopted(file, dims=dims)
    assert "\n" not in str(caught.value)
    assert not file.with_name("model.onnx").exists()


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04", None])
def test_no_onnx(tmp_path: Path, content: bytes | None) -> None:
    """An empty, a foreign and an absent file are named in one line."""
    file = tmp_path / "model.onnx"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConversionError, match=str(file)) as caught:
        read_onnx(file)
    assert "\n" not in str(caught.value)
