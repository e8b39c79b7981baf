"""The load report's figures of shares: saturation, routed against pinned, mix, budgets.

Colours are Okabe and Ito's, told apart by colour-blind people too; lines differ in style as well.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converters.look import DPI, INK, MUTED, foot, new_figure, plain
from loadtests.findings import Findings
from loadtests.knee import LEAST_WITHIN
from loadtests.phases import FULL, SETTLED, phase_name
from loadtests.records import OK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a900")
STYLES = ("-", "--", "-.", ":")
REFUSED = "#c9c9c9"
MIX_BINS = 24
LEAST_IN_BIN = 5
LEAST_SPAN_PERCENT = 90.0

Draw = Callable[["Figure", Findings], None]


def save(findings: Findings, file: Path, draw: Draw, *, height_in: float) -> None:
    """Draw one figure."""
    figure = new_figure(height_in)
    draw(figure, findings)
    foot(figure, findings.about.provenance.lines)
    figure.savefig(file, dpi=DPI)


def look_of(findings: Findings, variant: str) -> tuple[str, str]:
    """One colour and line style a variant in all figures."""
    known = findings.variants
    index = known.index(variant) if variant in known else len(known)
    turn, colour = divmod(index, len(COLOURS))
    return COLOURS[colour], STYLES[(index + turn) % len(STYLES)]


def title(axes: Axes, text: str) -> None:
    """Left, above."""
    axes.set_title(text, fontsize=10.5, loc="left")


def saturation(figure: Figure, findings: Findings) -> None:
    """Offered against achieved, and the share within budget, with the knee."""
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.4))
    seconds, knee = findings.curve, findings.knee
    if seconds is None or knee is None:
        raise ValueError("no ramp to draw")
    most = float(seconds.offered_per_s.max())
    top.plot([0, most], [0, most], "--", color=MUTED, linewidth=1, label="all answered")
    for good, colour, label in (
        (True, COLOURS[0], "that kept up"),
        (False, COLOURS[5], "behind, or with a budget missed"),
    ):
        chosen = seconds.good == good
        x, y = seconds.offered_per_s[chosen], seconds.achieved_per_s[chosen]
        marker = "o" if good else "x"
        top.plot(x, y, marker, color=colour, markersize=5, label=f"a second {label}")
        below.plot(x, 100 * seconds.within_share[chosen], marker, color=colour, markersize=5)
    for axes in (top, below):
        axes.axvline(knee.load_per_s, color=INK, linewidth=1.3)
        plain(axes)
    on_left = knee.load_per_s < most / 2
    top.annotate(
        f"knee: {knee}",
        (knee.load_per_s, 0.04 * most),
        xytext=(6 if on_left else -6, 0),
        textcoords="offset points",
        ha="left" if on_left else "right",
        fontsize=10,
        fontweight="bold",
    )
    below.axhline(100 * LEAST_WITHIN, color=MUTED, linewidth=1, linestyle="--")
    top.set_ylabel("answered per second")
    below.set_ylabel("within budget, %")
    below.set_xlabel("requests offered per second")
    top.set_ylim(bottom=0)
    least = 100 * float(np.nanmin(seconds.within_share, initial=1))
    below.set_ylim(min(least, LEAST_SPAN_PERCENT) - 4, 102)
    top.set_xlim(0, 1.02 * most)
    title(top, "saturation: answered against offered, and budgets met")
    top.legend(loc="upper left", frameon=False, fontsize=9)


def routed(figure: Figure, findings: Findings) -> None:
    """Routed and each pinned variant at equal loads: budgets met, fidelity, latency, answers."""
    panels = figure.subplots(1, 4, sharey=True)
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr, call-arg]
    policies = [None, *findings.variants]
    for share, filled in ((SETTLED, True), (FULL, False)):
        for row, pin in enumerate(policies):
            m = findings.measures.get(phase_name(pin, share))
            if m is None:
                continue
            colour = INK if pin is None else look_of(findings, pin)[0]
            values = (m.within_budget, m.fidelity, m.p95_ms, m.served_share)
            scaled = (_percent(values[0]), values[1], values[2], _percent(values[3]))
            for axes, value in zip(panels, scaled, strict=True):
                if value is not None:
                    axes.plot(
                        value,
                        row + (-0.13 if filled else 0.13),
                        marker="o",
                        markersize=9,
                        markeredgecolor=colour,
                        markeredgewidth=1.6,
                        markerfacecolor=colour if filled else "white",
                        clip_on=False,
                        zorder=3,
                    )
    heads = ("within budget, %", "mean fidelity served", "p95 latency, ms", "answered, %")
    for axes, head in zip(panels, heads, strict=True):
        plain(axes)
        axes.set_title(head, fontsize=9.5, loc="left")
        axes.tick_params(axis="x", labelsize=8)
        low, high = axes.get_xlim()
        axes.set_xlim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        if head.endswith("%"):
            axes.set_xlim(max(min(low - 2, LEAST_SPAN_PERCENT), -3), 101)
        axes.locator_params(axis="x", nbins=4)
    panels[1].ticklabel_format(axis="x", useOffset=False)
    panels[2].set_xlim(0, panels[2].get_xlim()[1])
    names = ["routed", *(f"all {v}" for v in findings.variants)]
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    handles = [
        panels[0].plot([], [], "o", color=MUTED, markersize=8, label=f"at {SETTLED:.0%} of the knee")[0],
        panels[0].plot(
            [], [], "o", markeredgecolor=MUTED, markerfacecolor="white", markersize=8, label="at the knee"
        )[0],
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, fontsize=9)


def mix(figure: Figure, findings: Findings) -> None:
    """Which variant answered, by offered load."""
    axes = figure.subplots()
    ramp, seconds = findings.phase_rows(findings.ramp or ""), findings.curve
    if seconds is None or findings.knee is None:
        raise ValueError("no ramp to draw")
    load = np.interp(ramp.intended_s, seconds.time_s, seconds.offered_per_s)
    edges = np.linspace(load.min(), load.max(), MIX_BINS + 1)
    asked = np.histogram(load, edges)[0]
    enough = asked >= LEAST_IN_BIN
    x = ((edges[:-1] + edges[1:]) / 2)[enough]
    shares, colours, names = [], [], []
    for variant in findings.variants:
        answered = np.histogram(load[(ramp.status == OK) & (ramp.variant == variant)], edges)[0]
        shares.append(100 * answered[enough] / asked[enough])
        colours.append(look_of(findings, variant)[0])
        names.append(variant)
    shares.append(np.maximum(100 - np.sum(shares, axis=0), 0))
    axes.stackplot(
        x, shares, colors=[*colours, REFUSED], labels=[*names, "not answered"], edgecolor="white"
    )
    axes.axvline(findings.knee.load_per_s, color=INK, linewidth=1.3)
    axes.text(findings.knee.load_per_s, 102, "knee", fontsize=9, ha="center", va="bottom")
    axes.set_ylim(0, 100)
    axes.set_xlim(x.min(), x.max())
    axes.set_xlabel("requests offered per second")
    axes.set_ylabel("share of requests, %")
    axes.set_title("variant mix against load\n", fontsize=10.5, loc="left")
    plain(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, reverse=True)


def budgets(figure: Figure, findings: Findings) -> None:
    """Share within budget, by budget class and phase."""
    axes = figure.subplots()
    phases = list(findings.by_budget)
    classes = sorted({b for of in findings.by_budget.values() for b in of}, key=_number)
    shares = np.array(
        [[findings.by_budget[p].get(b, np.nan) for b in classes] for p in phases], dtype=np.float64
    )
    axes.imshow(100 - 100 * shares, cmap="Oranges", vmin=-5, vmax=100, aspect="auto")
    for row, values in enumerate(100 * shares):
        for column, value in enumerate(values):
            if not np.isnan(value):
                colour = "white" if value < 40 else INK  # noqa: PLR2004
                text = f"{value:.1f}" if value < 100 else "100"  # noqa: PLR2004
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(classes)), [f"budget {b}" for b in classes], fontsize=9)
    axes.set_yticks(range(len(phases)), phases, fontsize=9)
    axes.spines[:].set_visible(False)
    title(axes, "feasible requests answered within their budget, %")


def _number(budget: str) -> float:
    return float(budget.split(maxsplit=1)[0])


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
