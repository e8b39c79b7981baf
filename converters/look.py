"""How figures and pages look, here and in the load tests' report."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

mpl.use("Agg")  # files only: no display is needed

WIDTH_IN = 9.0
DPI = 110
FOOT_IN = 0.55
FOOT_CHARS = 150
INK, MUTED = "#222222", "#8a8a8a"
NAME_CHARS = 24


def new_figure(height_in: float) -> Figure:
    """An empty figure with room for its foot."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    share = FOOT_IN / (height_in + FOOT_IN)
    return Figure(
        figsize=(WIDTH_IN, height_in + FOOT_IN),
        layout=ConstrainedLayoutEngine(rect=(0, share, 1, 1 - share)),
    )


def foot(figure: Figure, lines: Sequence[str]) -> None:
    """Where its numbers come from."""
    short = [textwrap.shorten(x, FOOT_CHARS, placeholder=" …") for x in lines]
    figure.text(0.01, 0.012, "\n".join(short), fontsize=6.5, color=MUTED, va="bottom")


def plain(axes: Axes) -> None:
    """Two spines and a pale grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def image(caption: str, file: Path) -> str:
    """A figure inside the page: nothing is fetched."""
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: Sequence[int] = (0,)
) -> str:
    """An HTML table; columns are numbers but for those in `words`, where short ones stay on a line."""

    def kind(column: int, value: str) -> str:
        if column not in words:
            return "number"
        return "name" if len(value) <= NAME_CHARS else "words"

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag} class={kind(i, value)}>{escape(value)}</{tag}>"
            for i, value in enumerate(values)
        )

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table>\n<tr>{cells('th', heads)}</tr>\n{body}\n</table>"
