"""The table of built variants: what each keeps of the vectors, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import MARKDOWN
from rich.table import Table

from serve_app.manifest import Manifest, Overlap, Profile
from serve_app.registry import Ladder

COLUMNS = (
    "variant",
    "fidelity (p1)",
    "mean",
    "min",
    "top-10 (both/query/doc)",
    "batch drift",
    "MB",
    "ms per 1000 tokens",
    "speed",
    "ladder",
)
YARDSTICK = "onnx-fp32"


def variants_table(manifests: Sequence[Manifest], ladder: Ladder) -> Table:
    """One row a variant, highest fidelity first; speed is relative to `onnx-fp32` where built."""
    ordered = sorted(manifests, key=lambda m: (-m.fidelity.p1, m.profile.cost_ms))
    off = {o.variant: o.reason for o in ladder.off}
    yardstick = yardstick_of(manifests)
    table = Table(*COLUMNS, box=MARKDOWN)
    for m in ordered:
        table.add_row(
            m.variant,
            f"{m.fidelity.p1:.5f}",
            f"{m.fidelity.mean:.5f}",
            f"{m.fidelity.min:.5f}",
            " / ".join(f"{100 * share:.1f}" for share in _shares(m.fidelity.overlap)),
            f"{m.fidelity.batch_drift:.0e}",
            f"{m.size_bytes / 1e6:.0f}",
            f"{m.profile.cost_ms * 1000:.1f}",
            speed(m.profile, yardstick),
            f"no: {off[m.variant]}" if m.variant in off else "yes",
        )
    return table


def yardstick_of(manifests: Sequence[Manifest]) -> Profile | None:
    """The profile that others are compared with, where it was built."""
    return next((m.profile for m in manifests if m.variant == YARDSTICK), None)


def speed(profile: Profile, yardstick: Profile | None) -> str:
    """How many times as fast as the yardstick, and with which threads where that is not by as many.

    A variant that needs a GPU runs with all threads of a host without one, as it is only looked at there.
    """
    if yardstick is None:
        return ""
    told = f"{yardstick.cost_ms / profile.cost_ms:.2f}×"
    if profile.device == yardstick.device and profile.threads != yardstick.threads:
        told += f" (threads: {profile.threads})"
    return told


def _shares(overlap: Overlap) -> tuple[float, float, float]:
    return overlap.both, overlap.queries, overlap.documents
