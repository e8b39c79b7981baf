"""The gates: what a variant must keep of the checkpoint's vectors to be deployed unless named.

One table, a row a kind of precision; all limits are inclusive. A variant that misses one is built
and kept, its manifest says why, and the ladder goes without it.

**Which overlap is gated.** `Overlap` has three; the gate reads the strictest, both sides embedded by
the variant. Over the 400 probe texts of all-MiniLM-L6-v2 (half of them queries) its standard error is
0.4 points, and `onnx-int8` has 93.8 % with plain rounding of the weights, 94.5 % with GPTQ's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from converters.fidelity import FAR
from serve_app.errors import ConversionError
from serve_app.manifest import Fidelity

MAX_DRIFT = 1e-4
MAX_LOST_POINTS = 0.5  # of 100, on any task that was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Limits of one kind of precision."""

    min_p1: float
    min_overlap: float = 0.0  # both sides, see above
    max_parity: float = 2.0  # largest 1 - cosine of any probe text


GATES = {
    "fp32": Gate(min_p1=0.99999, max_parity=1e-5),
    "fp16": Gate(min_p1=0.999),
    "bf16": Gate(min_p1=0.999),
    "int8": Gate(min_p1=0.98, min_overlap=0.94),
}


def gate(precision: str, fidelity: Fidelity) -> str | None:
    """Why a variant must stay off the ladder, all reasons in one line, or None.

    Args:
        precision: as variants name it; what follows a hyphen ("int8-dynamic") changes no limit.
        fidelity: what was measured.

    Raises:
        ConversionError: a precision without gates.
    """
    kind = precision.partition("-")[0]
    if kind not in GATES:
        raise ConversionError(f"no gates for precision {precision!r}; there are {', '.join(GATES)}")
    return "; ".join(_misses(kind, fidelity)) or None


def _misses(kind: str, fidelity: Fidelity) -> Iterator[str]:
    limits = GATES[kind]
    if fidelity.min <= FAR:
        yield "some vectors are not finite"
    if fidelity.p1 < limits.min_p1:
        yield f"fidelity {fidelity.p1:.4f} misses the {kind} gate of {limits.min_p1}"
    overlap = fidelity.overlap.both
    if overlap < limits.min_overlap:
        yield f"top-10 overlap {overlap:.1%} misses the {kind} gate of {limits.min_overlap:.0%}"
    parity = 1 - fidelity.min
    if parity > limits.max_parity:
        yield f"a text differs from FP32 by {parity:.1e}, over the {kind} gate of {limits.max_parity:.0e}"
    if fidelity.batch_drift > MAX_DRIFT:
        yield (
            f"vectors move with their batch-mates by {fidelity.batch_drift:.1e}, "
            f"over the gate of {MAX_DRIFT:.0e}"
        )
    for name, score in fidelity.tasks.items():
        if score.lost_points > MAX_LOST_POINTS:
            yield f"{name} loses {score.lost_points:.2f} points, over {MAX_LOST_POINTS}"
