"""The processor of this machine, and which variants it cannot run, or not right."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
TELLING = ("avx2", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
BF16 = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert"})
VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


@dataclass(frozen=True, slots=True)
class Cpu:
    """A model's name, its cores, and its flags as Linux names them; none where they are not told."""

    model: str
    cores: int
    flags: frozenset[str]

    @property
    def name(self) -> str:
        """With the instructions that decide which variant wins."""
        told = " ".join(flag for flag in TELLING if flag in self.flags)
        return f"{self.model}, {self.cores} cores, {told or 'flags unknown'}"

    @property
    def is_known_x86(self) -> bool:
        """Whether it is one whose flags are told."""
        return "sse2" in self.flags

    @property
    def has_vnni(self) -> bool:
        """Whether it adds products of INT8 in 32 bits; False where nothing is known."""
        return bool(self.flags & VNNI)

    def lacks(self, runtime: str, precision: str) -> str | None:
        """Why a variant cannot run here, or not as it was measured elsewhere; None where it can.

        OpenVINO's static INT8 multiplies UINT8 by INT8. Without VNNI it adds two such products in 16
        bits, which overflow: all-MiniLM-L6-v2 comes out at p1 .9905 instead of .9973, at two thirds of
        FP32's speed (AMD EPYC with AVX2 alone). ONNX Runtime has exact kernels there.
        """
        if runtime != "openvino" or not self.is_known_x86:
            return None
        if precision == "bf16" and not self.flags & BF16:
            return "needs a CPU with AVX512-BF16 or AMX; this one has neither"
        if precision == "int8" and not self.has_vnni:
            return "needs a CPU with VNNI: on this one its integer sums overflow; take onnx-int8"
        return None


@cache
def this_cpu() -> Cpu:
    """As Linux tells it; other systems tell a name at most."""
    return read_cpu(CPUINFO)


def read_cpu(cpuinfo: Path) -> Cpu:
    """The processor that such a file tells of."""
    facts: dict[str, str] = {}
    if cpuinfo.exists():
        pairs = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        facts = {key.strip(): value.strip() for key, _, value in pairs}
    return Cpu(
        model=facts.get("model name") or platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        flags=frozenset(facts.get("flags", "").split()),
    )
