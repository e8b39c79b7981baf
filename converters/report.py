"""The report: one self-contained HTML page, its figures as PNG, and all numbers as JSON beside it."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template

from converters.checkpoint import Checkpoint
from converters.findings import Built, Findings, gather
from converters.finish import Texts
from converters.look import image, table
from converters.plots import draw_all
from converters.table import speed, yardstick_of
from converters.workplace import Step
from serve_app.errors import ConversionError
from serve_app.manifest import Manifest

PAGE_NAME = "index.html"
NUMBERS_NAME = "report.json"
TEMPLATE = Path(__file__).parent / "data" / "report.html"
DATE_CHARS = len("2026-01-01")


def report(checkpoint: Checkpoint, built: Built, *, texts: Texts, to: Path, step: Step) -> Path:
    """Measure what only all variants together tell, and write the page.

    Args:
        checkpoint: what the variants were built from.
        built: the variants.
        texts: probe texts and tasks.
        to: the report's folder; made if missing.
        step: wraps each step, to show progress.

    Returns:
        The page.

    Raises:
        ConversionError: `to` cannot be written, or the artifacts are of another checkpoint.
    """
    _require_writable(to)  # before minutes of work
    findings = gather(checkpoint, built, texts=texts, step=step)
    with step("figures and page"):
        return write(findings, to)


def write(findings: Findings, to: Path) -> Path:
    """Write page, figures and numbers; returns the page.

    Raises:
        ConversionError: the folder cannot be written.
    """
    _require_writable(to)
    try:
        figures = draw_all(findings, to)
        numbers = json.dumps(asdict(findings), indent=2, ensure_ascii=False)
        (to / NUMBERS_NAME).write_text(numbers + "\n", encoding="utf-8")
        page = to / PAGE_NAME
        page.write_text(_page(findings, figures), encoding="utf-8")
    except OSError as error:
        raise ConversionError(f"{to}: writing failed ({error.strerror})") from error
    return page


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConversionError(f"{folder}: cannot be written ({error.strerror})") from error


def _page(findings: Findings, figures: dict[str, Path]) -> str:
    images = {f"figure_{file.stem}": image(caption, file) for caption, file in figures.items()}
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        images,
        model=escape(findings.model),
        provenance="<br>".join(map(escape, findings.provenance.lines)),
        variants=_variants(findings),
        retrieval=_retrieval(findings),
        tasks=_tasks(findings),
        profiles=_profiles(findings),
        origins=_origins(findings),
        claims=_claims(findings),
        yardsticks=_yardsticks(findings),
    )


def _variants(findings: Findings) -> str:
    yardstick = yardstick_of(findings.manifests)
    heads = ("variant", "fidelity", "mean", "min", "MB", "ms per 1000 tokens", "speed", "ladder")
    rows = [
        (
            m.variant,
            f"{m.fidelity.p1:.5f}",
            f"{m.fidelity.mean:.5f}",
            f"{m.fidelity.min:.5f}",
            f"{m.size_bytes / 1e6:.0f}",
            f"{m.profile.cost_ms * 1000:.1f}",
            speed(m.profile, yardstick),
            _standing(findings, m),
        )
        for m in findings.manifests
    ]
    return table(heads, rows, words=(0, 7))


def _standing(findings: Findings, manifest: Manifest) -> str:
    if manifest.variant not in findings.off:
        return "yes"
    winner = findings.beaten_by(manifest)
    reason = findings.off[manifest.variant]
    return (
        f"no: {reason}; beaten by {winner}" if winner and winner not in reason else f"no: {reason}"
    )


def _retrieval(findings: Findings) -> str:
    heads = (
        "variant",
        "overlap both",
        "queries only",
        "documents only",
        "drift alone again",
        "in a sorted batch",
        "beside a longest",
        "padded",
    )
    rows = []
    for m in findings.manifests:
        overlap, drift = m.fidelity.overlap, m.fidelity.drift
        shares = (overlap.both, overlap.queries, overlap.documents)
        drifts = (drift.alone, drift.sorted_batch, drift.beside_longest, drift.padded)
        rows.append((m.variant, *(f"{s:.1%}" for s in shares), *(f"{d:.0e}" for d in drifts)))
    return table(heads, rows)


def _tasks(findings: Findings) -> str:
    rows = [
        (variant, name, f"{s.points:.2f}", f"{s.fp32_points:.2f}", f"{s.lost_points:+.2f}")
        for variant, scores in findings.tasks.items()
        for name, s in scores.items()
    ]
    if not rows:
        return (
            "<p>No task with right answers was given (<code>--sts</code>, <code>--beir</code>).</p>"
        )
    return table(("variant", "task", "points", "FP32", "lost"), rows, words=(0, 1))


def _profiles(findings: Findings) -> str:
    heads = (
        "variant",
        "base ms",
        "ms per 1000 tokens",
        "p95 / fit",
        "largest residual",
        "best batch",
        "load ms",
        "memory MB",
    )
    rows = [
        (
            m.variant,
            f"{m.profile.base_ms:.2f}",
            f"{m.profile.per_token_ms * 1000:.1f}",
            f"{m.profile.spread:.2f}",
            f"{max(m.profile.residuals, key=abs, default=0.0):+.0%}",
            f"{m.profile.batch_tokens} tokens",
            f"{m.profile.load_ms:.0f}",
            f"{m.profile.resident_bytes / 1e6:.0f}",
        )
        for m in findings.manifests
    ]
    return table(heads, rows)


def _origins(findings: Findings) -> str:
    """Where, when and how variants were built and measured; once for those it is the same for."""
    variants: dict[str, list[str]] = {}
    for m in findings.manifests:
        where = f"{m.profile.hardware}; threads: {m.profile.threads}"
        origin = f"{where}; {m.built_at[:DATE_CHARS]}, commit {m.commit}, {m.command}"
        variants.setdefault(origin, []).append(m.variant)
    lines = (f"{', '.join(names)}: {origin}" for origin, names in variants.items())
    return "\n".join(f'<p class="foot">{escape(line)}</p>' for line in lines)


def _claims(findings: Findings) -> str:
    rows = [(c.claim, c.variant, c.measured, c.verdict) for c in findings.claims]
    return table(("published", "variant", "measured here", "verdict"), rows, words=range(4))


def _yardsticks(findings: Findings) -> str:
    """Medians in ms of the interleaved run: a row an engine, a column a batch."""
    cells = [(c.texts, c.tokens) for c in next(iter(findings.yardsticks.values()), ())]
    heads = ["median ms of a batch", *(f"{count} × {tokens}" for count, tokens in cells)]
    rows = []
    for name, grid in findings.yardsticks.items():
        times = {(c.texts, c.tokens): c.median_ms for c in grid}
        rows.append([name, *(f"{times[cell]:.1f}" for cell in cells)])
    return table(heads, rows)
