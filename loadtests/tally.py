"""Requests in Locust's own tables and charts: by class, variant and budget.

A request counts once in Locust's totals, under its class. The other lines stand beside it:

    POST      tight                   answered requests of a class
    POST      tight: 429 not admitted refused before anything was computed; 504 expired likewise
    VARIANT   variant openvino-int8   what it answered
    BUDGET    budget 25 ms            all with that budget; "fails" are those outside it
    FIDELITY  fidelity x 10000        the average is the mean fidelity served

Refusals are the contract with a server that admits only what it can do in time: they are lines of
their own and no failures. Any other status than 200, and no answer, is one.
"""

from __future__ import annotations

from typing import Any, Protocol

from loadtests.records import EXPIRED, NOT_ADMITTED, OK, Row

REFUSALS = {NOT_ADMITTED: "429 not admitted", EXPIRED: "504 expired"}
FIDELITY_SCALE = 10_000


class Entry(Protocol):
    """A line of Locust's table."""

    def log(self, response_time: Any, content_length: int) -> None: ...
    def log_error(self, error: Any) -> None: ...


class Stats(Protocol):
    """Locust's table."""

    def get(self, name: str, method: str) -> Any: ...


def line(row: Row) -> str:
    """Name the line of its class that a request counts under."""
    refusal = REFUSALS.get(row.status)
    return f"{row.hint_class}: {refusal}" if refusal else row.hint_class


def beside(stats: Stats, row: Row) -> None:
    """Count a request under its variant, its budget and its fidelity, outside Locust's totals."""
    if row.status == OK and row.variant:
        stats.get(f"variant {row.variant}", "VARIANT").log(row.latency_ms, 0)
    if row.fidelity is not None:
        stats.get(f"fidelity x {FIDELITY_SCALE}", "FIDELITY").log(row.fidelity * FIDELITY_SCALE, 0)
    if row.budget_ms is not None:
        budget: Entry = stats.get(f"budget {row.budget_ms:g} ms", "BUDGET")
        budget.log(row.latency_ms, 0)
        if not row.within_budget:
            budget.log_error(None)
