"""What `simulate` leaves behind: tables.md, simulate.json and a figure, each with its provenance."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from converters.look import DPI, INK, foot, new_figure, plain
from converters.provenance import Provenance, provenance
from loadtests.errors import BadFile
from loadtests.plots import COLOURS, title
from loadtests.sim_results import Mean
from loadtests.sim_runs import BOUND, ROUTED, Done
from loadtests.sim_tables import of, policies, tables
from loadtests.simulate import Scenario, Simulated

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOOLS = ("numpy", "matplotlib", "pydantic")
PANEL_IN = 3.1
MARKERS = "osD^vP<>Xhd"


def write(simulated: Simulated, out: Path) -> str:
    """Write all files into a folder; returns the tables."""
    about = provenance(packages=TOOLS)
    text = tables(simulated)
    lines = "\n".join(f"- {line}" for line in about.lines)
    try:
        out.mkdir(parents=True, exist_ok=True)
        page = f"# Simulated\n\n{lines}\n\n{text}"
        (out / "tables.md").write_text(page, encoding="utf-8")
        (out / "simulate.json").write_text(_json(simulated, about), encoding="utf-8")
        if simulated.scenarios:
            _draw(simulated, about, out / "simulate.png")
    except OSError as error:
        raise BadFile(f"--out={out}: writing failed: {error.strerror}") from error
    return text


def _json(simulated: Simulated, about: Provenance) -> str:
    """A line for each run."""
    head = {
        "provenance": asdict(about),
        "about": simulated.measured.about,
        "machine": asdict(simulated.measured.machine),
        "capacity": asdict(simulated.capacity),
        "seeds": simulated.options.seeds,
    }
    start = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
    rows = ",\n".join(json.dumps(_row(done), ensure_ascii=False) for done in simulated.done)
    return f'{start},\n "runs": [\n{rows}\n ]\n}}\n'


def _row(done: Done) -> dict[str, object]:
    run = done.run
    row: dict[str, object] = {
        "scenario": run.scenario,
        "name": run.name,
        "seed": run.seed,
        "rate_per_s": run.load.rate,
        "duration_s": run.load.duration_s,
        "attainment": done.attainment,
        "fidelity": done.fidelity,
    }
    if run.load.spike is not None:
        row["recovered_s"] = done.recovered_s
        row["around_spike"] = done.around_spike
    if done.result is not None:
        row |= asdict(done.result)
        row["calibration"] = [[c.variant, c.bin, c.within, c.of] for c in done.result.calibration]
    return {name: _rounded(value) for name, value in row.items()}


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return round(value, 6) if isinstance(value, float) else value


def _draw(simulated: Simulated, about: Provenance, file: Path) -> None:
    """Attainment against normalised fidelity, a panel for each scenario."""
    scenarios = simulated.scenarios
    figure = new_figure(PANEL_IN * len(scenarios))
    panels = figure.subplots(len(scenarios), 1, squeeze=False)[:, 0]
    for axes, scenario in zip(panels, scenarios, strict=True):
        _panel(axes, simulated, scenario)
    foot(figure, about.lines)
    figure.savefig(file, dpi=DPI)


def _panel(axes: Axes, simulated: Simulated, scenario: Scenario) -> None:
    shown = policies(simulated, scenario.name)
    others = [name for name in shown if name not in {ROUTED, BOUND}]
    for name in shown:
        done = of(simulated, scenario.name, name)
        x = Mean.of([100 * d.attainment for d in done])
        y = Mean.of([d.fidelity for d in done])
        turn = others.index(name) if name in others else 0
        colour = {ROUTED: INK, BOUND: COLOURS[5]}.get(name, COLOURS[turn % len(COLOURS)])
        marker = {ROUTED: "*", BOUND: "s"}.get(name, MARKERS[turn % len(MARKERS)])
        axes.errorbar(
            x.value,
            y.value,
            xerr=x.half or None,
            yerr=y.half or None,
            fmt=marker,
            color=colour,
            markersize=12 if name == ROUTED else 7,
            markerfacecolor="none" if name == BOUND else colour,
            elinewidth=0.8,
            label=name,
        )
    axes.set_xlim(right=100.5)
    axes.set_ylim(bottom=-0.03, top=1.04)
    axes.set_xlabel("answered in time, % of offered", fontsize=9)
    axes.set_ylabel("normalised fidelity", fontsize=9)
    title(axes, f"{scenario.title} ({scenario.rate(simulated.capacity):.0f}/s)")
    plain(axes)
    axes.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
