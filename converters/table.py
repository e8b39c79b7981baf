"""The table of built variants: what each keeps of the vectors, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import MARKDOWN
from rich.table import Table

from serve_app.manifest import Manifest, Overlap
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
    yardstick_ms = next((m.profile.cost_ms for m in ordered if m.variant == YARDSTICK), None)
    table = Table(*COLUMNS, box=MARKDOWN)
    for m in ordered:
        ratio = yardstick_ms and yardstick_ms / m.profile.cost_ms
        table.add_row(
            m.variant,
            f"{m.fidelity.p1:.5f}",
            f"{m.fidelity.mean:.5f}",
            f"{m.fidelity.min:.5f}",
            " / ".join(f"{100 * share:.1f}" for share in _shares(m.fidelity.overlap)),
            f"{m.fidelity.batch_drift:.0e}",
            f"{m.size_bytes / 1e6:.0f}",
            f"{m.profile.cost_ms * 1000:.1f}",
            f"{ratio:.2f}×" if ratio else "",
            f"no: {off[m.variant]}" if m.variant in off else "yes",
        )
    return table


def _shares(overlap: Overlap) -> tuple[float, float, float]:
    return overlap.both, overlap.queries, overlap.documents
