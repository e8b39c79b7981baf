"""The report's figures. Each carries machine, versions, commit and command in its foot."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from converters.findings import Findings
from converters.look import DPI, INK, foot, new_figure, plain
from serve_app.manifest import Manifest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_LOSS = 1e-7  # FP32 rounding: below it, 1 - fidelity says nothing
FRONT = "#1f6fb2"
COLOURS = ("#1f6fb2", "#d1701c", "#2d8a4e", "#a23b72", "#6b5ca5", "#8c6d31", "#3a8f8f", "#b23a3a")
MARKERS = ("o", "s", "^")
WHY_CHARS = 34


def draw_all(findings: Findings, folder: Path) -> dict[str, Path]:
    """Write every figure as PNG; by caption."""
    drawn = {
        "Fidelity against throughput": (
            _front,
            "fidelity.png",
            3.6 + 0.25 * len(findings.manifests),
        ),
        "Size": (_size, "size.png", 1.6 + 0.42 * len(findings.manifests)),
        "Latency by length": (_latency, "latency.png", 4.4),
        "Cross-variant recall": (_cross, "cross.png", 2.0 + 0.62 * len(findings.cross)),
    }
    files = {}
    for caption, (draw, name, height_in) in drawn.items():
        figure = new_figure(height_in)
        draw(figure, findings)
        foot(figure, findings.provenance.lines)
        files[caption] = folder / name
        figure.savefig(files[caption], dpi=DPI)
    return files


def _look(findings: Findings, variant: str) -> tuple[str, str]:
    """One colour and marker a variant in all figures."""
    turn, index = divmod(sorted(m.variant for m in findings.manifests).index(variant), len(COLOURS))
    return COLOURS[index], MARKERS[turn % len(MARKERS)]


def _loss(manifest: Manifest) -> float:
    return max(LEAST_LOSS, 1 - manifest.fidelity.p1)


def _throughput(manifest: Manifest) -> float:
    """Tokens per second of one replica, in full batches."""
    return 1000 / manifest.profile.cost_ms


def _front(figure: Figure, findings: Findings) -> None:
    axes = figure.subplots()
    ladder = sorted(findings.ladder, key=_throughput)
    axes.step(
        [_throughput(m) for m in ladder],
        [_loss(m) for m in ladder],
        where="pre",
        color=FRONT,
        linewidth=1.5,
        alpha=0.7,
        label="the ladder: the Pareto front",
    )
    for number, m in enumerate(findings.manifests, 1):
        _numbered(axes, findings, m, number=number)
    _front_axes(axes, findings)
    axes.set_title(f"{findings.model}: fidelity against throughput", fontsize=11, loc="left")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, labelspacing=0.9)


def _numbered(axes: Axes, findings: Findings, manifest: Manifest, *, number: int) -> None:
    """A numbered disc, hollow off the ladder: names beside the points would overlap."""
    on = manifest.variant not in findings.off
    colour, _ = _look(findings, manifest.variant)
    x, y = _throughput(manifest), _loss(manifest)
    axes.plot(
        x,
        y,
        marker="o",
        markersize=13,
        markeredgecolor=colour,
        markerfacecolor=colour if on else "white",
        linestyle="none",
        clip_on=False,
        zorder=3 + on,
        label=_name(findings, manifest, number=number),
    )
    axes.text(
        x,
        y,
        str(number),
        color="white" if on else colour,
        fontsize=7.5,
        ha="center",
        va="center",
        zorder=4 + on,
    )


def _front_axes(axes: Axes, findings: Findings) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(max(2e-2, 2 * max(map(_loss, findings.manifests))), LEAST_LOSS / 2)
    throughputs = [_throughput(m) for m in findings.manifests]
    low, high = min(throughputs) / 1.4, max(throughputs) * 1.4
    axes.set_xlim(low, high)
    decades = [n for n in range(1, 8) if 10.0**-n <= axes.get_ylim()[0]]
    names = {n: f"0.{'9' * n}" for n in decades} | {7: "≥ 0.9999999"}
    axes.set_yticks([10.0**-n for n in decades], [names[n] for n in decades])
    axes.set_xticks(*_number_ticks(low, high))
    axes.minorticks_off()
    axes.set_xlabel("tokens per second of one replica, full batches")
    axes.set_ylabel("fidelity: cosine to FP32, 1st percentile")
    plain(axes)


def _number_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """1, 2 and 5 of each decade between the limits."""
    ticks = [m * 10.0**e for e in range(9) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    return ticks, [f"{tick:,.0f}" for tick in ticks]


def _name(findings: Findings, manifest: Manifest, *, number: int) -> str:
    head = f"{number}  {manifest.variant}"
    if manifest.variant not in findings.off:
        return head
    winner = findings.beaten_by(manifest)
    why = f"beaten by {winner}" if winner else findings.off[manifest.variant]
    lines = textwrap.wrap(why, WHY_CHARS, max_lines=3, placeholder=" …")
    return "\n    ".join([head, *lines])


def _size(figure: Figure, findings: Findings) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    names = [m.variant for m in findings.manifests]
    colours = [_look(findings, name)[0] for name in names]
    disk = [m.size_bytes / 1e6 for m in findings.manifests]
    memory = [m.profile.resident_bytes / 1e6 for m in findings.manifests]
    for axes, values, title in (
        (left, disk, "files, MB"),
        (right, memory, "memory of a process, MB"),
    ):
        bars = axes.barh(names, values, color=colours, height=0.6)
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8.5)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlim(0, 1.15 * max(values))
        plain(axes)
        axes.grid(visible=False, axis="y")
    left.invert_yaxis()


def _latency(figure: Figure, findings: Findings) -> None:
    axes = figure.subplots()
    lengths: set[int] = set()
    for m in findings.manifests:
        cells = [c for c in m.profile.grid if c.texts == 1]
        lengths |= {c.tokens for c in cells}
        x = [c.tokens for c in cells]
        colour, marker = _look(findings, m.variant)
        medians = [c.median_ms for c in cells]
        axes.plot(x, medians, marker, color=colour, markersize=5, label=m.variant)
        axes.plot(x, [m.profile.fitted_ms(n) for n in x], "-", color=colour, linewidth=1.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sorted(lengths), [str(n) for n in sorted(lengths)])
    low, high = axes.get_ylim()
    ticks = [m * 10.0**e for e in range(-3, 5) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("tokens of a single text")
    axes.set_ylabel("milliseconds")
    axes.set_title(
        "latency by length: measured medians (dots), fitted profile (lines)",
        fontsize=11,
        loc="left",
    )
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    plain(axes)


def _cross(figure: Figure, findings: Findings) -> None:
    axes = figure.subplots()
    names = list(findings.cross)
    percents = [[100 * findings.cross[a][b] for b in names] for a in names]
    least = min(map(min, percents))
    shown = axes.imshow(percents, cmap="Blues", vmin=min(90.0, least), vmax=100, aspect="auto")
    dark = 0.3 * min(90.0, least) + 70
    for row, values in enumerate(percents):
        for column, value in enumerate(values):
            colour = "white" if value > dark else INK
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xlabel("queries embedded by")
    axes.set_ylabel("documents embedded by")
    axes.spines[:].set_visible(False)
    axes.set_title("top-10 overlap with FP32 on both sides, %", fontsize=11, loc="left")
    figure.colorbar(shown, ax=axes, fraction=0.04)
