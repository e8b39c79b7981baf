"""A run's figure: CPU per text of each row, and what it answers, a panel for each workload."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from converters.look import DPI, INK, MUTED, foot, new_figure, plain
from converters.provenance import Provenance
from loadtests.bench.engine_modes import ENGINE, ONE_TEXT, SORTED_TEXT
from loadtests.bench.results import Figure as Value
from loadtests.bench.results import Results, cpu_s_per_1000, texts_per_s
from loadtests.bench.samples import IN_PROCESS, Cell, Row
from loadtests.plots import COLOURS, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN_MODES = (ONE_TEXT, SORTED_TEXT)
ROW_IN, HEAD_IN = 0.19, 0.75
OTHER = 6  # colour of subjects beyond those that have one


def draw(results: Results, file: Path, *, clients: int, made: Provenance) -> None:
    """Bars of medians; dots are the rounds."""
    workloads = list(dict.fromkeys(cell.workload for cell in results.cells))
    rows = [r for r in results.rows if r.subject != ENGINE or r.mode in SHOWN_MODES]
    figure = new_figure(max(len(workloads) * (HEAD_IN + ROW_IN * len(rows)), 2.5))
    panels = figure.subplots(len(workloads), 2, sharey="row", squeeze=False)
    for (left, right), workload in zip(panels, workloads, strict=True):
        _bars(left, results, rows, workload, clients, cpu_s_per_1000)
        _bars(right, results, rows, workload, clients, texts_per_s)
        title(left, f"{workload} × {clients}: CPU-s per 1000 texts")
        title(right, "texts per second")
    foot(figure, made.lines)
    _save(figure, file)


def _bars(
    axes: Axes, results: Results, rows: Sequence[Row], workload: str, clients: int, value: Value
) -> None:
    subjects = list(dict.fromkeys(row.subject for row in rows))
    names = []
    for place, row in enumerate(rows):
        cell = Cell(workload, IN_PROCESS if row.subject == ENGINE else clients)
        names.append(str(row))
        median = results.median(row, cell, value)
        if median is None:
            continue
        colour = COLOURS[min(subjects.index(row.subject), OTHER)]
        axes.barh(place, median, color=colour, alpha=0.75, height=0.72)
        dots = [v for v in results.by_round(row, cell, value).values() if v is not None]
        axes.plot(dots, [place] * len(dots), ".", color=INK, markersize=3)
        axes.annotate(
            f"{median:.3g}" if median < 1000 else f"{median:.0f}",  # noqa: PLR2004 (else 1e+03)
            (median, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=MUTED,
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * axes.get_xlim()[1])
    plain(axes)
    axes.tick_params(axis="y", labelsize=7.5)


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, dpi=DPI)
