"""The load report: one self-contained page, its figures as PNG, its numbers as CSV and JSON beside it."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from string import Template

from converters.look import image, table
from loadtests import plots, time_plots
from loadtests.errors import BadFile
from loadtests.findings import Findings, gather
from loadtests.knee import DEFINITION
from loadtests.numbers_beside import PHASE_HEADS, cells, number, percent, write_numbers
from loadtests.phases import FULL, SETTLED, SOAK, phase_name

PAGE_NAME = "index.html"
TEMPLATE = Path(__file__).parent / "data" / "report.html"


def write(folder: Path) -> Findings:
    """Report the run in a folder, into that folder.

    Raises:
        BadFile: there is no run, nothing ran, or the folder cannot be written.
    """
    findings = gather(folder)
    if not findings.measures:
        raise BadFile(f"{folder}: no request was made, so there is nothing to report")
    try:
        figures = _draw(findings, folder)
        write_numbers(findings, folder)
        (folder / PAGE_NAME).write_text(_page(findings, figures), encoding="utf-8")
    except OSError as error:
        raise BadFile(f"{folder}: writing failed: {error.strerror}") from error
    return findings


def _draw(findings: Findings, folder: Path) -> dict[str, str]:
    """Every figure that there is something for, as an image by its name."""
    phases = len(findings.measures)
    compared = len([name for name in findings.measures if name.startswith("pinned-")])
    wanted: list[tuple[str, plots.Draw, float, bool]] = [
        ("saturation", plots.saturation, 5.2, findings.curve is not None),
        ("mix", plots.mix, 3.4, findings.curve is not None),
        ("routed", plots.routed, 1.6 + 0.5 * len(findings.variants), compared > 0),
        ("budgets", plots.budgets, 0.9 + 0.33 * phases, any(findings.by_budget.values())),
        ("over_time", time_plots.over_time, 5.2, True),
        ("replicas", time_plots.replicas, 3.8, True),
        ("memory", time_plots.memory, 3.8, True),
    ]
    images = {}
    for name, draw, height_in, drawable in wanted:
        images[name] = ""
        if drawable:
            file = folder / f"{name}.png"
            plots.save(findings, file, draw, height_in=height_in)
            images[name] = image(name.replace("_", " "), file)
    return images


def _page(findings: Findings, figures: dict[str, str]) -> str:
    about = findings.about
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        {f"figure_{name}": figure for name, figure in figures.items()},
        title=escape(f"{about.profile} on {about.host}"),
        provenance="<br>".join(map(escape, about.provenance.lines)),
        lead=escape(" ".join(_lead(findings))),
        warnings="\n".join(f'<p class="warning">{escape(w)}</p>' for w in findings.warnings),
        verdicts=_verdicts(findings),
        saturation=_saturation(findings, figures),
        routed=_routed(findings, figures),
        feasible=escape(_feasible(findings)),
        phases=_phases(findings),
        memory=escape(_memory(findings)),
        load=_load(findings),
    )


def _lead(findings: Findings) -> Iterator[str]:
    """What it comes to, in sentences."""
    served = ", ".join(findings.variants)
    yield f"{len(findings.variants)} variants were served: {served}."
    if findings.knee is not None:
        knee = findings.knee
        yield f"The knee is at {knee}; most answered in a second: {knee.highest_achieved_per_s:.0f}."
    main = findings.measures.get(findings.about.main_phase)
    if main is not None and main.within_budget is not None:
        yield (
            f"In {findings.about.main_phase}, {main.within_budget:.2%} of feasible requests were answered within "
            f"budget at {main.offered_per_s:.0f} requests/s, with {main.errors} errors."
        )
    yield from _bought(findings)


def _bought(findings: Findings) -> Iterator[str]:
    """Routing against always-cheapest and always-best at equal load."""
    ours = findings.measures.get(phase_name(None, SETTLED))
    cheapest = min(findings.about.served, key=lambda v: v.cost_ms).variant
    for name, pin in (("cheapest", cheapest), ("best", findings.variants[0])):
        theirs = findings.measures.get(phase_name(pin, SETTLED))
        if ours is not None and theirs is not None:
            yield (
                f"Always the {name} ({pin}) had {percent(theirs.within_budget)} within budget at mean fidelity "
                f"{number(theirs.fidelity, 5)}, routed {percent(ours.within_budget)} at {number(ours.fidelity, 5)}."
            )


def _verdicts(findings: Findings) -> str:
    if not findings.verdicts:
        return ""
    rows = [
        (v.slo, v.phase, "not measured" if v.value is None else f"{v.value:.6g}", "met" if v.met else "MISSED")
        for v in findings.verdicts
    ]  # fmt: skip
    return "<h2>Objectives</h2>\n" + table(
        ("objective", "phase", "measured", "verdict"), rows, words=(0, 1, 3)
    )


def _saturation(findings: Findings, figures: dict[str, str]) -> str:
    if findings.knee is None:
        return "<h2>Saturation</h2>\n<p>No ramp was run to its end: no knee is known.</p>"
    return (
        f"<h2>Saturation: the knee is at {escape(str(findings.knee))}</h2>\n<p>{escape(DEFINITION)} "
        f"This is phase {escape(findings.ramp or '')}.</p>\n<figure>{figures['saturation']}</figure>\n"
        f"<figure>{figures['mix']}</figure>"
    )


def _routed(findings: Findings, figures: dict[str, str]) -> str:
    if not figures["routed"]:
        return ""
    heads = ("policy", "load", "within budget", "mean fidelity", "p95 ms", "answered", "429", "504")
    rows = []
    for share in (SETTLED, FULL):
        for pin in (None, *findings.variants):
            m = findings.measures.get(phase_name(pin, share))
            if m is not None:
                rows.append(
                    (
                        "routed" if pin is None else f"all {pin}",
                        f"{m.offered_per_s:.0f}/s ({share:.0%})",
                        percent(m.within_budget),
                        number(m.fidelity, 5),
                        number(m.p95_ms, 1),
                        f"{m.served_share:.1%}",
                        str(m.rejected),
                        str(m.expired),
                    )
                )
    return (
        "<h2>What routing buys</h2>\n<p>The same requests at the same times, with the same budgets: "
        "routed, and all answered by one variant.</p>\n"
        f"<figure>{figures['routed']}</figure>\n{table(heads, rows)}"
    )


def _feasible(findings: Findings) -> str:
    """What the idle server admitted of each class, in a sentence."""
    about = findings.about
    classes = [
        f"{name} {share:.0%}"
        + ("" if share == 1 else f" (up to {about.token_limits[name]} tokens)")
        for name, share in about.feasible.items()
    ]
    told = f"{', '.join(classes) or 'all, as no class has a budget'}."
    if about.estimated_texts:
        told += f" The tokens of {about.estimated_texts} texts were estimated from their length."
    return told


def _phases(findings: Findings) -> str:
    rows = []
    for turn, ran in enumerate(findings.about.phases, 1):
        m = findings.measures.get(ran.name)
        client = "" if ran.client_share is None else f"{ran.client_share:.0%}"
        if m is not None:
            rows.append((str(turn), ran.name, *cells(m), client))
    return table(PHASE_HEADS, rows, words=(1,))


def _memory(findings: Findings) -> str:
    if findings.memory_growth is None:
        return "Whether memory grows is judged in a soak, where the server's processes are on this machine."
    return (
        f"Growth over the {SOAK} after its warm-up, median of the last quarter against the first: "
        f"{findings.memory_growth:+.2%}. Pages that processes share count once in each."
    )


def _load(findings: Findings) -> str:
    about = findings.about
    served = table(
        ("variant", "fidelity", "ms per 1000 tokens", "replicas at start"),
        [
            (v.variant, f"{v.fidelity:.5f}", f"{1000 * v.cost_ms:.1f}", str(v.replicas))
            for v in about.served
        ],
    )
    phases = table(
        ("phase", "arrivals", "pinned to"),
        [(p.name, p.arrivals, p.pin or "") for p in about.phases],
        words=(0, 1, 2),
    )
    mix = f"Weights: {about.mix}. {about.tokens_per_request:.0f} tokens per request; seed {about.seed}."
    return f"<p>{escape(mix)}</p>\n{served}\n{phases}"
