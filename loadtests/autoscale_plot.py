"""The figure of `python -m loadtests autoscale`: replicas and answers in time, policy by policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from converters.look import DPI, INK, MUTED, foot, new_figure, plain
from converters.provenance import Provenance
from loadtests.autoscale_load import Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from loadtests.autoscale import Played

BIN_S = 2.0
COLOURS = ("#4269d0", "#efb118")


def draw(file: Path, phases: Sequence[Phase], played: Sequence[Played], source: Provenance) -> None:
    """A row for each policy: its replicas, and beneath the share of requests answered in time."""
    figure = new_figure(2.4 * len(played))
    rows = figure.subplots(len(played), 2, sharex=True, squeeze=False)
    for (left, right), one in zip(rows, played, strict=True):
        _replicas(left, one)
        _in_time(right, one)
        for axes in (left, right):
            plain(axes)
            start_s = 0.0
            for phase in phases:
                axes.axvline(start_s, color=MUTED, linewidth=0.6, linestyle=":")
                start_s += phase.seconds
    rows[0][0].legend(frameon=False, fontsize=8)
    for axes in rows[-1]:
        axes.set_xlabel("seconds; dotted: " + ", ".join(p.name for p in phases), fontsize=8)
    foot(figure, source.lines)
    figure.savefig(file, dpi=DPI)


def _replicas(axes: Axes, one: Played) -> None:
    times = [s.at_s for s in one.samples]
    variants = list(one.samples[0].replicas)
    for variant, colour in zip(variants, COLOURS, strict=False):
        counts = [s.replicas[variant] for s in one.samples]
        axes.step(times, counts, where="post", color=colour, label=variant)
    held = one.replica_seconds["all"]
    axes.set_title(f"{one.policy}: replicas, {held:.0f} replica-seconds", fontsize=9, loc="left")


def _in_time(axes: Axes, one: Played) -> None:
    bins: dict[int, list[bool]] = {}
    for answer in one.answers:
        bins.setdefault(int(answer.due_s // BIN_S), []).append(answer.in_time)
    times = [(number + 0.5) * BIN_S for number in sorted(bins)]
    shares = [100 * sum(bins[n]) / len(bins[n]) for n in sorted(bins)]
    axes.plot(times, shares, ".-", color=INK, linewidth=1)
    axes.set_ylim(-3, 103)
    axes.set_title(
        f"in time: {one.attainment['all']:.1%} (% in {BIN_S:.0f} s)", fontsize=9, loc="left"
    )
