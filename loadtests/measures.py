"""What the requests of one phase tell: rates, latencies, shares, and the fidelity served.

Latency counts from the intended send time, so a slow server cannot hide behind waiting clients. A share
"within budget" is taken over feasible requests: those that the server admits when it is idle, as each row
says of itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtests.records import EXPIRED, NOT_ADMITTED, OK, Columns

Floats = NDArray[np.float64]
EVER = np.array([-np.inf, np.inf])


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """One phase; None where there was nothing to measure it by."""

    requests: int
    answered: int
    rejected: int  # 429: refused before anything was computed
    expired: int  # 504: admitted, but late
    errors: int  # everything else that is no answer
    offered_per_s: float
    throughput: float  # answers per second
    texts_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    within_budget: float | None  # share of feasible requests with a budget
    fidelity: float | None  # mean over answers
    variants: dict[str, float]  # share of answers

    @property
    def served_share(self) -> float:
        """Answers among requests."""
        return self.answered / self.requests if self.requests else 0.0


def measure(rows: Columns) -> Measures | None:
    """Measure the rows of a phase; None without any."""
    if not len(rows):
        return None
    answers = rows.where(rows.status == OK)
    rejected, expired = (int((rows.status == s).sum()) for s in (NOT_ADMITTED, EXPIRED))
    asked_s = _span_s(rows.intended_s, rows.intended_s)
    busy_s = _span_s(rows.intended_s, answers.finished_s)
    p50, p95, p99 = (_percentile(answers.latency_ms, q) for q in (50, 95, 99))
    return Measures(
        requests=len(rows),
        answered=len(answers),
        rejected=rejected,
        expired=expired,
        errors=len(rows) - len(answers) - rejected - expired,
        offered_per_s=len(rows) / asked_s,
        throughput=len(answers) / busy_s,
        texts_per_s=float(answers.texts.sum()) / busy_s,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        within_budget=within_budget(rows),
        fidelity=_mean(answers.fidelity),
        variants={
            str(v): float((answers.variant == v).mean()) for v in np.unique(answers.variant) if v
        },
    )


def within_budget(rows: Columns) -> float | None:
    """Share of feasible requests answered within their budget; None when none had one."""
    due, missed = (float(x[0]) for x in budget_counts(rows, EVER))
    return None if due == 0 else 1 - missed / due


def feasible(rows: Columns) -> Columns:
    """Those that an idle server admits, and those of which nobody asked it."""
    return rows.where(rows.feasible != 0)


def budget_counts(rows: Columns, edges: Floats) -> tuple[Floats, Floats]:
    """Feasible requests with a budget, and those of them that missed it, by bin of intended time.

    Returns:
        Two arrays, [bins] each.
    """
    due = feasible(rows.where(~np.isnan(rows.budget_ms)))
    return due_counts(due, edges), due_counts(due.where(due.within_budget != 1), edges)


def due_counts(rows: Columns, edges: Floats) -> Floats:
    """Feasible requests, with a budget or without, by bin of intended time: [bins]."""
    return np.histogram(feasible(rows).intended_s, edges)[0].astype(np.float64)


def budget_name(budget_ms: float) -> str:
    """`25 ms`, or `no budget`."""
    return "no budget" if np.isnan(budget_ms) else f"{budget_ms:g} ms"


def _span_s(started_s: Floats, ended_s: Floats) -> float:
    """From the first start to the last end, a second at least: one request has no rate."""
    return max(float(ended_s.max() - started_s.min()) if len(ended_s) else 0.0, 1.0)


def _percentile(values: Floats, percent: float) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None


def _mean(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
