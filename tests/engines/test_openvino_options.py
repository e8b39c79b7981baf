"""What OpenVINO is told of a variant, on CPUs with and without BF16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from serve_app.engines.base import DYNAMIC_GROUP
from serve_app.errors import ArtifactError
from tests.engines.conftest import MakeVariant

Options = dict[str, Any]


@pytest.fixture
def options_of(make_variant: MakeVariant) -> Callable[..., Options]:
    """OpenVINO is imported late: before Locust, it hangs the collection of all tests."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    from serve_app.engines.openvino_engine import compile_options

    return lambda precision, *, has_bf16: compile_options(
        make_variant(precision), 1, has_bf16=has_bf16
    )


@pytest.mark.parametrize(
    ("precision", "hint"),
    [("fp32", "f32"), ("bf16", "bf16"), ("int8", "bf16"), ("int8-dynamic", "f32")],
)
def test_bf16_is_used_where_a_variant_may(
    options_of: Callable[..., Options], precision: str, hint: str
) -> None:
    """On a CPU with BF16 that is INT8 and BF16; FP32 stays itself, and dynamic INT8 wants floats."""
    assert options_of(precision, has_bf16=True)["INFERENCE_PRECISION_HINT"] == hint


def test_a_cpu_without_bf16_runs_all_but_bf16(options_of: Callable[..., Options]) -> None:
    """There the BF16 variant is refused by name, and the others run in FP32."""
    with pytest.raises(ArtifactError, match="openvino-bf16 needs a CPU with AVX512-BF16"):
        options_of("bf16", has_bf16=False)
    assert options_of("int8", has_bf16=False)["INFERENCE_PRECISION_HINT"] == "f32"


def test_only_dynamic_int8_rounds_activations_as_they_come(
    options_of: Callable[..., Options],
) -> None:
    """Its groups are its weights'; OpenVINO's own default would round what is meant to be float."""
    sizes = {
        precision: options_of(precision, has_bf16=False)["DYNAMIC_QUANTIZATION_GROUP_SIZE"]
        for precision in ("fp32", "int8", "int8-dynamic")
    }
    assert sizes == {"fp32": 0, "int8": 0, "int8-dynamic": DYNAMIC_GROUP}
