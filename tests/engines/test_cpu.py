"""Which processor this is, and what it cannot run."""

from pathlib import Path

import pytest

from serve_app.engines import base
from serve_app.engines.cpu import Cpu, read_cpu
from serve_app.errors import ArtifactError
from tests.engines.conftest import MakeVariant

PLAIN = frozenset({"sse2", "avx2"})


def cpu(*flags: str) -> Cpu:
    return Cpu("A", 2, PLAIN | set(flags))


def test_a_processor_is_named_by_its_model_cores_and_telling_flags(tmp_path: Path) -> None:
    """Linux says it once a core; flags that decide nothing are left out."""
    file = tmp_path / "cpuinfo"
    core = "processor\t: 0\nmodel name\t: AMD: EPYC\nflags\t\t: fpu avx2 avx512_vnni sse2\n\n"
    file.write_text(core * 2)
    found = read_cpu(file)
    assert found.name.startswith("AMD: EPYC, ")
    assert found.name.endswith(" cores, avx2 avx512_vnni")
    assert found.flags == {"fpu", "avx2", "avx512_vnni", "sse2"}


def test_without_linux_flags_are_unknown_and_nothing_is_refused(tmp_path: Path) -> None:
    """What is not known stands in no variant's way."""
    found = read_cpu(tmp_path / "none")
    assert found.name.endswith(" cores, flags unknown")
    assert found.lacks("openvino", "bf16") is None
    assert found.lacks("openvino", "int8") is None


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", "avx_ne_convert"])
def test_openvinos_bf16_needs_bf16(flag: str) -> None:
    """Any of the instructions that have it will do."""
    assert "AVX512-BF16 or AMX" in str(cpu().lacks("openvino", "bf16"))
    assert cpu(flag).lacks("openvino", "bf16") is None


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni", "amx_int8"])
def test_openvinos_static_int8_needs_vnni(flag: str) -> None:
    """Without it sums overflow, and the reason names what does not; FP32 and dynamic INT8 run anywhere."""
    assert "take onnx-int8" in str(cpu().lacks("openvino", "int8"))
    assert cpu(flag).lacks("openvino", "int8") is None
    for runtime, precision in (("openvino", "int8-dynamic"), ("onnx", "int8"), ("torch", "bf16")):
        assert cpu().lacks(runtime, precision) is None


def test_an_engine_that_would_be_wrong_here_is_not_opened(
    tmp_path: Path, make_variant: MakeVariant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the variant, before its runtime is imported."""
    monkeypatch.setattr(base, "this_cpu", cpu)
    with pytest.raises(ArtifactError, match=r"^openvino-int8 needs a CPU with VNNI"):
        base.open_engine(tmp_path, make_variant("int8"))
