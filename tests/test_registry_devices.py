"""Where variants run: which need a GPU, which have it, and whose profile counts there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.registry import load_ladder
from tests.rungs import change, names_of, reasons_of

MakeArtifact = Callable[..., Any]


@pytest.fixture
def with_fp16(artifacts: Path, write_artifact: MakeArtifact) -> Path:
    write_artifact(artifacts / "torch-fp16", p1=0.99999, cost_ms=0.01)
    change(artifacts / "torch-fp16", runtime="torch")
    return artifacts


def test_fp16_stays_off_without_a_gpu(with_fp16: Path) -> None:
    """A CPU runs fp16 slower than fp32, whatever its profile says, and it pushes nobody off."""
    ladder = load_ladder(with_fp16)  # no GPU is the default
    assert names_of(ladder) == ["fake-fp32", "fake-bf16", "fake-int8"]
    assert reasons_of(ladder) == {"torch-fp16": "needs a GPU, and this cluster has none"}


def test_fp16_runs_on_the_gpu_where_there_is_one(with_fp16: Path) -> None:
    """With a GPU in the cluster it is deployed there, and the others stay on the CPU."""
    change(with_fp16 / "torch-fp16", profile={"device": "cuda"})
    ladder = load_ladder(with_fp16, gpus=1)
    devices = {rung.manifest.variant: rung.device for rung in ladder.rungs}
    assert devices == {"fake-fp32": "cpu", "torch-fp16": "cuda"}
    assert "torch-fp16 has fidelity 1.0000" in reasons_of(ladder)["fake-bf16"]


def test_a_loss_of_the_size_of_fp16_is_none(with_fp16: Path) -> None:
    """FP32 on the cores is no better than FP16 beside it, at a thousandth of the cost; BF16's loss is one."""
    change(
        with_fp16 / "torch-fp16",
        profile={"device": "cuda", "hardware": "H100"},
        fidelity={"p1": 1 - 6e-7},
    )
    ladder = load_ladder(with_fp16, gpus=1)
    assert names_of(ladder) == ["torch-fp16"]
    change(with_fp16 / "torch-fp16", fidelity={"p1": 1 - 2e-5})
    assert names_of(load_ladder(with_fp16, gpus=1)) == ["fake-fp32", "torch-fp16"]


def test_other_precisions_of_torch_stay_on_the_cpu(artifacts: Path) -> None:
    """A GPU in the cluster is for the precisions that need one."""
    change(artifacts / "fake-fp32", runtime="torch")
    assert {rung.device for rung in load_ladder(artifacts, gpus=1).rungs} == {"cpu"}


def test_a_profile_of_another_device_is_no_reason_to_stay_off(with_fp16: Path) -> None:
    """What fp16 costs on the CPU it was measured on says nothing of the GPU it will run on."""
    change(with_fp16 / "torch-fp16", profile={"per_token_ms": 99.0})
    assert "torch-fp16" in names_of(load_ladder(with_fp16, gpus=1))


def test_a_profile_of_another_device_pushes_nobody_off(with_fp16: Path) -> None:
    """A cost that was not measured where the variant runs proves nothing against the others."""
    assert "fake-bf16" in names_of(load_ladder(with_fp16, gpus=1))


GPU_VARIANTS = {"torch-fp16": "torch", "onnx-fp16": "onnx", "onnx-tensorrt": "tensorrt"}


@pytest.fixture
def for_gpus(tmp_path: Path, write_artifact: MakeArtifact) -> Path:
    """Three ways to run FP16 on a GPU, measured there, beside FP32 on the CPU."""
    folder = tmp_path / "for_gpus"
    write_artifact(folder / "fake-fp32", p1=1.0, cost_ms=0.3)
    for variant, runtime in GPU_VARIANTS.items():
        write_artifact(folder / variant, p1=0.99999, cost_ms=0.01)
        change(folder / variant, runtime=runtime, precision="fp16", profile={"device": "cuda"})
    return folder


@pytest.mark.parametrize("cheapest", sorted(GPU_VARIANTS))
def test_the_measured_profile_decides_which_runtime_has_the_gpu(
    for_gpus: Path, cheapest: str
) -> None:
    """Of variants that are equally close, the one measured cheapest on the GPU is taken."""
    change(for_gpus / cheapest, profile={"per_token_ms": 0.005})
    ladder = load_ladder(for_gpus, gpus=1)
    devices = {rung.manifest.variant: rung.device for rung in ladder.rungs}
    assert devices == {"fake-fp32": "cpu", cheapest: "cuda"}
    assert all(cheapest in reasons_of(ladder)[v] for v in GPU_VARIANTS if v != cheapest)


def test_an_onnx_variant_runs_where_it_was_measured(for_gpus: Path) -> None:
    """ONNX FP16 measured on the CPU stays there, with a GPU in the cluster too."""
    change(for_gpus / "onnx-fp16", profile={"device": "cpu"})
    ladder = load_ladder(for_gpus, named=("onnx-fp16", "torch-fp16"), gpus=1)
    assert {r.manifest.variant: r.device for r in ladder.rungs} == {
        "onnx-fp16": "cpu",
        "torch-fp16": "cuda",
    }


def test_what_was_measured_on_a_gpu_stays_off_without_one(for_gpus: Path) -> None:
    """A GPU's costs say nothing of a CPU: the variant is off, and the reason says what to do."""
    ladder = load_ladder(for_gpus)
    assert names_of(ladder) == ["fake-fp32"]
    assert "measured on a GPU" in reasons_of(ladder)["onnx-fp16"]
    assert "measure it again" in reasons_of(ladder)["onnx-fp16"]
