"""What is published about the techniques, against what was measured here.

Ratios of time are those of one interleaved run on one machine, cell by cell of the latency grid.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve_app.manifest import GridCell, Manifest

TORCH = "torch-fp32"
TORCH_GPU = "torch-fp32 on the GPU"
ONNX = "onnx-fp32"
NOT_MEASURED = "not measured"

Grids = Mapping[str, Sequence[GridCell]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One published claim, and this machine's answer."""

    claim: str
    variant: str
    measured: str
    verdict: str  # "holds", "exceeds", "falls short", or NOT_MEASURED


@dataclass(frozen=True, slots=True)
class Ratio:
    """A quotient over the cells of a grid: geometric mean, least and most."""

    mean: float
    least: float
    most: float

    @classmethod
    def of(cls, slower: Sequence[GridCell], faster: Sequence[GridCell]) -> Ratio:
        """Time of one over time of the other, on the cells that both ran."""
        times = {(c.texts, c.tokens): c.median_ms for c in slower}
        shared = [c for c in faster if (c.texts, c.tokens) in times]
        quotients = np.array([times[c.texts, c.tokens] / c.median_ms for c in shared])
        mean = float(np.exp(np.log(quotients).mean()))
        return cls(mean, float(quotients.min()), float(quotients.max()))


def claims(
    manifests: Sequence[Manifest], grids: Grids, *, weights: Mapping[str, str], gpu: bool
) -> list[Claim]:
    """All claims, each for every variant that it is about.

    Args:
        manifests: what was built.
        grids: by variant, of one interleaved run; `TORCH` among them.
        weights: what the bytes of a variant's weights are, in words.
        gpu: whether this machine has one.
    """
    return [
        *_smaller(manifests, weights),
        *_faster(manifests, grids),
        *_onnx_latency(grids),
        *_half(manifests, grids, gpu=gpu),
    ]


def _verdict(value: float, at_least: float, at_most: float = math.inf) -> str:
    shown = round(value, 2)
    if shown < at_least:
        return "falls short"
    return "holds" if shown <= at_most else "exceeds"


def _smaller(manifests: Sequence[Manifest], weights: Mapping[str, str]) -> list[Claim]:
    claim, at_least = "INT8 is 4× smaller than FP32", 3.5  # rounds to 4
    full_bytes = next((m.size_bytes for m in manifests if m.variant == ONNX), None)
    found = []
    for m in _of_kind(manifests, "int8"):
        if full_bytes is None:
            found.append(_missing(claim, m.variant, ONNX))
            continue
        ratio = full_bytes / m.size_bytes
        made_of = weights.get(m.variant)
        measured = f"{ratio:.2f}×" + (f" ({made_of})" if made_of else "")
        found.append(
            Claim(
                claim=claim, variant=m.variant, measured=measured, verdict=_verdict(ratio, at_least)
            )
        )
    return found


def _faster(manifests: Sequence[Manifest], grids: Grids) -> list[Claim]:
    claim, published = "INT8 is 2-3× faster than FP32", (2.0, 3.0)
    found = []
    for m in _of_kind(manifests, "int8"):
        if m.variant not in grids or ONNX not in grids:
            found.append(_missing(claim, m.variant, ONNX if ONNX not in grids else m.variant))
            continue
        ratio = Ratio.of(grids[ONNX], grids[m.variant])
        measured = f"{ratio.mean:.2f}× ({ratio.least:.2f} to {ratio.most:.2f} by batch)"
        found.append(
            Claim(
                claim=claim,
                variant=m.variant,
                measured=measured,
                verdict=_verdict(ratio.mean, *published),
            )
        )
    return found


def _onnx_latency(grids: Grids) -> list[Claim]:
    claim, published = "ONNX Runtime FP32 has 20-30 % lower latency than PyTorch FP32", (0.2, 0.3)
    if ONNX not in grids or TORCH not in grids:
        return [_missing(claim, ONNX, ONNX if ONNX not in grids else TORCH)]
    single = {name: [c for c in grids[name] if c.texts == 1] for name in (ONNX, TORCH)}
    ratio = Ratio.of(single[TORCH], single[ONNX])
    lower = 1 - 1 / ratio.mean
    longest = max(c.tokens for c in single[ONNX])
    measured = (
        f"{lower:.0%} lower on single texts ({1 - 1 / ratio.least:.0%} to {1 - 1 / ratio.most:.0%} "
        f"by length, up to {longest} tokens)"
    )
    return [
        Claim(claim=claim, variant=ONNX, measured=measured, verdict=_verdict(lower, *published))
    ]


def _half(manifests: Sequence[Manifest], grids: Grids, *, gpu: bool) -> list[Claim]:
    claim, at_least = "FP16 is faster than FP32 on tensor cores", 1.0
    found = []
    for m in _of_kind(manifests, "fp16"):
        if TORCH_GPU not in grids or m.variant not in grids:
            measured, verdict = "was not run" if gpu else "no GPU here", NOT_MEASURED
        else:
            ratio = Ratio.of(grids[TORCH_GPU], grids[m.variant])
            measured = f"{ratio.mean:.2f}× ({ratio.least:.2f} to {ratio.most:.2f} by batch)"
            verdict = _verdict(ratio.mean, at_least)
        found.append(Claim(claim=claim, variant=m.variant, measured=measured, verdict=verdict))
    return found or [_missing(claim, "torch-fp16", "torch-fp16")]


def _of_kind(manifests: Sequence[Manifest], kind: str) -> list[Manifest]:
    return [m for m in manifests if m.precision.partition("-")[0] == kind]


def _missing(claim: str, variant: str, what: str) -> Claim:
    return Claim(claim=claim, variant=variant, measured=f"{what} was not run", verdict=NOT_MEASURED)


def weight_bytes(file: Path) -> str:
    """The bytes of an ONNX file's weights by type, in words: "float32 48 MB, int8 11 MB"."""
    import onnx

    sizes: Counter[str] = Counter()
    for tensor in onnx.load(file).graph.initializer:
        kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        sizes[kind.name] += int(np.prod(tensor.dims, dtype=np.int64)) * kind.itemsize
    shown = [(name, size) for name, size in sizes.most_common() if size >= 1_000_000]  # noqa: PLR2004
    return ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in shown)
