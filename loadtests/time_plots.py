"""The load report's figures over time: answers and p95, replicas and queues, memory and processors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from converters.look import INK, MUTED, plain
from loadtests.findings import CLIENT_LIMIT, Findings
from loadtests.knee import Floats
from loadtests.plots import COLOURS, STYLES, look_of, title
from loadtests.records import OK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BINS = 240
LEAST_FOR_P95 = 3
TEN = 10.0


def bin_s(findings: Findings) -> float:
    """Seconds per point: one, or more where a run is long."""
    return max(1.0, float(np.ceil(_length_s(findings) / MOST_BINS)))


def over_time(figure: Figure, findings: Findings) -> None:
    """Answers per second, stacked by variant, and their p95."""
    top, below = figure.subplots(2, 1, sharex=True)
    time_s, asked, answered, p95 = timeline(findings)
    colours = [look_of(findings, v)[0] for v in answered]
    top.stackplot(
        time_s, list(answered.values()), colors=colours, labels=list(answered), linewidth=0
    )
    top.plot(time_s, asked, color=INK, linewidth=1, label="offered")
    for variant, values in p95.items():
        colour, style = look_of(findings, variant)
        below.plot(time_s, values, style, color=colour, linewidth=1.4)
    below.set_yscale("log")
    _number_ticks(below)
    top.set_ylabel("per second")
    below.set_ylabel("p95 latency, ms")
    title(top, "answers by variant; numbers are the phases of the table\n")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, reverse=True)
    _phases(figure, findings)


def replicas(figure: Figure, findings: Findings) -> None:
    """What autoscaling did, and what waited."""
    top, below = figure.subplots(2, 1, sharex=True)
    for what, axes in (("replicas", top), ("queued_tokens", below)):
        for variant in findings.variants:
            x, y = _sampled(findings, what, variant)
            colour, style = look_of(findings, variant)
            axes.step(
                x,
                y,
                style,
                where="post",
                color=colour,
                linewidth=1.6,
                label=variant if axes is top else None,
            )
    top.yaxis.get_major_locator().set_params(integer=True)
    top.set_ylim(bottom=0)
    below.set_ylim(bottom=0)
    top.set_ylabel("replicas")
    below.set_ylabel("tokens queued")
    title(top, "autoscaling\n")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    _phases(figure, findings)


def memory(figure: Figure, findings: Findings) -> None:
    """Memory of the server's processes, and the cores that server and client used."""
    top, below = figure.subplots(2, 1, sharex=True)
    x, y = _sampled(findings, "server_rss_bytes", "")
    if len(y):
        top.plot(x, y / 1e6, color=COLOURS[0], linewidth=1.6)
        top.set_ylim(0, 1.15 * float(y.max()) / 1e6)
    else:
        top.text(0.5, 0.5, "the server's processes are not here", transform=top.transAxes, ha="center")  # fmt: skip
    for (what, label), colour, style in zip(
        (("server_cpu", "server"), ("client_cpu", "client")), COLOURS, STYLES, strict=False
    ):
        x, y = _sampled(findings, what, "")
        if len(y):
            below.plot(x, y, style, color=colour, linewidth=1.4, label=label)
    below.axhline(CLIENT_LIMIT, color=MUTED, linewidth=1, linestyle=":", label="client's limit")
    below.set_ylim(bottom=0)
    top.set_ylabel("resident memory, MB")
    below.set_ylabel("cores used")
    title(top, "memory of the server's process tree; processors\n")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    _phases(figure, findings)


def timeline(findings: Findings) -> tuple[Floats, Floats, dict[str, Floats], dict[str, Floats]]:
    """Time, offered per second, and by variant answers per second and p95 (NaN where few)."""
    width = bin_s(findings)
    start = _start_s(findings)
    edges = start + width * np.arange(int(_length_s(findings) / width) + 2, dtype=np.float64)
    rows = findings.rows
    asked = np.histogram(rows.intended_s, edges)[0] / width
    answered, p95 = {}, {}
    for variant in findings.variants:
        own = rows.where((rows.status == OK) & (rows.variant == variant))
        answered[variant] = np.histogram(own.finished_s, edges)[0] / width
        p95[variant] = _p95(own.finished_s, own.latency_ms, edges)
    return edges[:-1] - start, asked, answered, p95


def _p95(times_s: Floats, latency_ms: Floats, edges: Floats) -> Floats:
    found = np.full(len(edges) - 1, np.nan)
    bins = np.digitize(times_s, edges) - 1
    for index in np.unique(bins):
        inside = latency_ms[bins == index]
        if 0 <= index < len(found) and len(inside) >= LEAST_FOR_P95:
            found[index] = np.percentile(inside, 95)
    return found


def _sampled(findings: Findings, what: str, name: str) -> tuple[Floats, Floats]:
    chosen = [s for s in findings.samples if s.what == what and s.name == name]
    return (
        np.array([s.time_s - _start_s(findings) for s in chosen], dtype=np.float64),
        np.array([s.value for s in chosen], dtype=np.float64),
    )


def _phases(figure: Figure, findings: Findings) -> None:
    """Bands behind all panels, numbered above the first."""
    panels: list[Axes] = figure.axes
    for number, ran in enumerate(findings.about.phases, 1):
        begin, end = (t - _start_s(findings) for t in (ran.started_s, ran.ended_s))
        for axes in panels:
            axes.axvspan(begin, end, color="#f0f0f0" if number % 2 else "white", zorder=-2)
        panels[0].text(
            (begin + end) / 2,
            1.02,
            str(number),
            transform=panels[0].get_xaxis_transform(),
            fontsize=8.5,
            ha="center",
            color=MUTED,
        )
    for axes in panels:
        axes.set_xlim(0, _length_s(findings))
        plain(axes)
    panels[-1].set_xlabel("seconds")


def _number_ticks(axes: Axes) -> None:
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high > TEN * low else (1, 1.5, 2, 3, 4, 5, 6, 8)
    ticks = [m * 10.0**e for e in range(-1, 6) for m in steps if low <= m * 10.0**e <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _start_s(findings: Findings) -> float:
    return findings.about.phases[0].started_s


def _length_s(findings: Findings) -> float:
    return max(findings.about.phases[-1].ended_s - _start_s(findings), 1.0)
