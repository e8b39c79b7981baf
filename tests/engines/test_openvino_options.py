"""What OpenVINO is told of a variant, on CPUs with and without BF16."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from serve_app.errors import ArtifactError
from serve_app.manifest import Tokenizer, Variant

openvino_engine = pytest.importorskip(
    "serve_app.engines.openvino_engine", reason="openvino is not installed"
)
MakeVariant = Callable[[str], Variant]


@pytest.fixture
def variant(make_facts) -> MakeVariant:
    def make(precision: str) -> Variant:
        return Variant(
            variant=f"openvino-{precision}",
            runtime="openvino",
            precision=precision,
            checkpoint=make_facts(max_tokens=32),
            tokenizer=Tokenizer(digest="0" * 64, pad_id=0, vocab_size=9),
        )

    return make


@pytest.mark.parametrize(
    ("precision", "hint"),
    [("fp32", "f32"), ("bf16", "bf16"), ("int8", "bf16"), ("int8-dynamic", "f32")],
)
def test_bf16_is_used_where_a_variant_may(variant: MakeVariant, precision: str, hint: str) -> None:
    """On a CPU with BF16 that is INT8 and BF16; FP32 stays itself, and dynamic INT8 wants floats."""
    options = openvino_engine.compile_options(variant(precision), 1, has_bf16=True)
    assert options["INFERENCE_PRECISION_HINT"] == hint


def test_a_cpu_without_bf16_runs_all_but_bf16(variant: MakeVariant) -> None:
    """There the BF16 variant is refused by name, and the others run in FP32."""
    with pytest.raises(ArtifactError, match="openvino-bf16 needs a CPU with AVX512-BF16"):
        openvino_engine.compile_options(variant("bf16"), 1, has_bf16=False)
    options = openvino_engine.compile_options(variant("int8"), 1, has_bf16=False)
    assert options["INFERENCE_PRECISION_HINT"] == "f32"


def test_only_dynamic_int8_rounds_activations_as_they_come(variant: MakeVariant) -> None:
    """Its groups are its weights'; OpenVINO's own default would round what is meant to be float."""
    sizes = {
        precision: openvino_engine.compile_options(variant(precision), 1, has_bf16=False)[
            "DYNAMIC_QUANTIZATION_GROUP_SIZE"
        ]
        for precision in ("fp32", "int8", "int8-dynamic")
    }
    assert sizes == {"fp32": 0, "int8": 0, "int8-dynamic": openvino_engine.DYNAMIC_GROUP}
