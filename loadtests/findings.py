"""What a run found: the knee, every phase's measures, memory, warnings, and the objectives' verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtests.knee import Curve, Knee, curve, find_knee
from loadtests.measures import Measures, budget_name, measure, within_budget
from loadtests.phases import SOAK
from loadtests.records import Columns, read_columns, to_columns
from loadtests.run_folder import REQUESTS, SAMPLES, About
from loadtests.sampling import Sample, growth, read_samples
from loadtests.slo import Verdict, check, parse_slo

CLIENT_LIMIT = 0.8  # of one core: above, the client may be what is slow
WARM_SHARE, WARM_MOST_S = 0.2, 120.0
LATE_CLIENT_MS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that the report tells."""

    about: About
    rows: Columns
    samples: tuple[Sample, ...]
    measures: dict[str, Measures]  # by phase, in order
    by_budget: dict[str, dict[str, float]]  # phase -> budget -> share within
    ramp: str | None  # the phase whose knee counts: the last ramp
    curve: Curve | None
    knee: Knee | None
    memory_growth: float | None  # over the soak
    sending_late_ms: dict[str, float]  # by phase, p95 of how late requests left the client
    warnings: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    def phase_rows(self, name: str) -> Columns:
        """Its requests."""
        return self.rows.where(self.rows.phase == name) if len(self.rows) else self.rows

    @property
    def variants(self) -> list[str]:
        """Served variants, best fidelity first."""
        return [v.variant for v in self.about.served]


def gather(folder: Path) -> Findings:
    """Read a run's folder.

    Raises:
        BadFile: no run is there.
    """
    about = About.read(folder)
    file = folder / REQUESTS
    rows = read_columns(file) if file.exists() else to_columns([])
    samples = tuple(read_samples(folder / SAMPLES))
    measured, by_budget, late = {}, {}, {}
    for ran in about.phases:
        of_phase = rows.where(rows.phase == ran.name) if len(rows) else rows
        found = measure(of_phase)
        if found is not None:
            measured[ran.name] = found
            by_budget[ran.name] = _by_budget(of_phase)
            late[ran.name] = float(
                np.percentile((of_phase.sent_s - of_phase.intended_s) * 1000, 95)
            )
    ramp = next((p.name for p in reversed(about.phases) if p.name.startswith("ramp")), None)
    seconds = curve(rows.where(rows.phase == ramp)) if ramp in measured else None
    slos = [parse_slo(text) for text in about.slos]
    return Findings(
        about=about,
        rows=rows,
        samples=samples,
        measures=measured,
        by_budget=by_budget,
        ramp=ramp,
        curve=seconds,
        knee=None if seconds is None else find_knee(seconds),
        memory_growth=_growth(about, samples),
        sending_late_ms=late,
        warnings=tuple(_warnings(about, measured, late)),
        verdicts=check(slos, measured, main_phase=about.main_phase),
    )


def _by_budget(rows: Columns) -> dict[str, float]:
    found = {}
    for budget_ms in np.unique(rows.budget_ms[~np.isnan(rows.budget_ms)]):
        share = within_budget(rows.where(rows.budget_ms == budget_ms))
        if share is not None:
            found[budget_name(float(budget_ms))] = share
    return found


def _growth(about: About, samples: tuple[Sample, ...]) -> float | None:
    """Over the soak, its first minutes left out: caches fill and replicas start."""
    soak = next((p for p in about.phases if p.name == SOAK), None)
    if soak is None:
        return None
    warm_s = min(WARM_MOST_S, WARM_SHARE * (soak.ended_s - soak.started_s))
    return growth(samples, from_s=soak.started_s, to_s=soak.ended_s, warm_s=warm_s)


def _warnings(
    about: About, measured: Mapping[str, Measures], late: Mapping[str, float]
) -> list[str]:
    found = []
    if about.interrupted:
        found.append("The run was interrupted: this is what ran until then.")
    if about.stopped_by:
        found.append(f"The run ended early: {about.stopped_by}")
    busy = [
        f"{p.name} {p.client_share:.0%}"
        for p in about.phases
        if p.client_share is not None and p.client_share > CLIENT_LIMIT
    ]
    if busy:
        found.append(
            f"The client used more than {CLIENT_LIMIT:.0%} of a core in {', '.join(busy)}: there the "
            "client may have been what was slow. Spread the load over several processes or machines."
        )
    delayed = [f"{name} {ms:.0f} ms" for name, ms in late.items() if ms > LATE_CLIENT_MS]
    if delayed:
        found.append(
            "Requests left the client late (95th percentile of how much): "
            f"{', '.join(delayed)}. Their latencies contain it."
        )
    cut = {p.name: p.dropped for p in about.phases if p.dropped and not p.name.startswith("ramp")}
    if cut:
        found.append(
            "Requests that were due and cut off at the end: "
            + ", ".join(f"{name} {count}" for name, count in cut.items())
        )
    errors = {name: m.errors for name, m in measured.items() if m.errors}
    if errors:
        found.append("Errors: " + ", ".join(f"{n} in {name}" for name, n in errors.items()))
    return found
