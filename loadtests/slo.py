"""Service-level objectives for CI: `within_budget>=0.99`, `soak:errors<=0`.

`[PHASE:]METRIC>=VALUE` or `<=`. Without a phase, `errors` counts over the whole run, and every other
metric is that of the run's main phase: routed at 70 % of the knee, or the soak.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtests.errors import BadOption
from loadtests.measures import Measures

METRICS = (
    "within_budget",
    "errors",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "throughput",
    "fidelity",
    "rejected",
    "expired",
)
FORM = re.compile(
    r"(?:(?P<phase>[^:<>=]+):)?(?P<metric>[a-z0-9_]+)(?P<sign>[<>]=)(?P<limit>[^<>=]+)"
)


@dataclass(frozen=True, slots=True)
class Slo:
    """One promise about one number."""

    phase: str | None  # None: the default phase of the metric
    metric: str
    at_least: bool
    limit: float

    def __str__(self) -> str:
        head = f"{self.phase}:" if self.phase else ""
        return f"{head}{self.metric}{'>=' if self.at_least else '<='}{self.limit:g}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A promise and what was measured; None: nothing was, and that is no promise kept."""

    slo: str
    phase: str
    value: float | None
    met: bool

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:.6g}"
        return f"{'met' if self.met else 'MISSED'}: {self.slo} in {self.phase}: {value}"


def parse_slo(text: str) -> Slo:
    """Read one objective.

    Raises:
        BadOption: it has no such form, metric or number.
    """
    found = FORM.fullmatch(text.replace(" ", ""))
    if found is None:
        raise BadOption(
            "--slo", text, "must be METRIC>=VALUE, METRIC<=VALUE or PHASE:METRIC>=VALUE"
        )
    if found["metric"] not in METRICS:
        raise BadOption(
            "--slo", text, f"no metric {found['metric']}; there are {', '.join(METRICS)}"
        )
    try:
        limit = float(found["limit"])
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise BadOption("--slo", text, f"{found['limit']} is no number")
    return Slo(found["phase"], found["metric"], found["sign"] == ">=", limit)


def check(
    slos: Sequence[Slo], phases: Mapping[str, Measures], *, main_phase: str
) -> tuple[Verdict, ...]:
    """Hold the measured phases to the objectives."""
    return tuple(_check(slo, phases, main_phase) for slo in slos)


def _check(slo: Slo, phases: Mapping[str, Measures], main_phase: str) -> Verdict:
    if slo.phase is None and slo.metric == "errors":
        value = float(sum(m.errors for m in phases.values())) if phases else None
        return _verdict(slo, "all phases", value)
    phase = slo.phase or main_phase
    measured = phases.get(phase)
    return _verdict(slo, phase, None if measured is None else getattr(measured, slo.metric))


def _verdict(slo: Slo, phase: str, value: float | None) -> Verdict:
    met = value is not None and (value >= slo.limit if slo.at_least else value <= slo.limit)
    return Verdict(str(slo), phase, None if value is None else float(value), met)
