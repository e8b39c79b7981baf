"""What issue 6 asks of the numbers, and whether they met it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from loadtests.bench.engine_modes import ARRIVAL, ENGINE, ONE_TEXT, SORTED, SORTED_TEXT
from loadtests.bench.ours import BARE, OURS, STOCK
from loadtests.bench.results import Results, cpu_s_per_1000, p50_ms, texts_per_s
from loadtests.bench.samples import IN_PROCESS, Cell, Row, Standing
from loadtests.bench.workloads import MIXED, QUERY

CLIENTS = 16
Bound = Literal["≤", "≥"]


@dataclass(frozen=True, slots=True)
class Target:
    """A number that was asked for, and the one that was found."""

    what: str
    bound: Bound
    asked: float
    found: float | None  # None: not measured
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether; None where nobody knows."""
        if self.found is None:
            return None
        return self.found <= self.asked if self.bound == "≤" else self.found >= self.asked

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """For a table: what, asked, measured, met."""
        found = "not measured" if self.found is None else f"{self.found:.3g}{self.unit}"
        met = {True: "yes", False: "no", None: "–"}[self.met]
        return self.what, f"{self.bound} {self.asked:g}{self.unit}", found, met


def bench_targets(results: Results, variants: Sequence[str]) -> list[Target]:
    """Those that a bench can tell, of each variant where they are of one."""
    found: list[Target] = []
    for variant in variants:
        found += _of_variant(results, variant)
    ready_s = results.standing(OURS, lambda s: s.ready_s)
    idle = results.standing(OURS, lambda s: s.idle_cores)
    return [
        *found,
        Target("idle CPU of the whole cluster, of one core", "≤", 8.0, _percent(idle), " %"),
        Target("`make serve` to ready, artifacts built", "≤", 15.0, _served_s(results), " s"),
        Target("  of it `python -m serve_app` to `/ready`", "≤", 15.0, ready_s, " s"),
    ]


def _of_variant(results: Results, variant: str) -> Iterator[Target]:
    ours, bare = Row(OURS, variant), Row(BARE, variant)
    one, sorted_text = Row(ENGINE, variant, ONE_TEXT), Row(ENGINE, variant, SORTED_TEXT)
    query, mixed = Cell(QUERY, CLIENTS), Cell(MIXED, CLIENTS)
    for cell, asked in ((query, 1.5), (mixed, 1.08)):
        for engine, told in ((one, "one text a call"), (sorted_text, "sorted batches")):
            yield Target(
                f"{variant}: CPU per text ÷ engine, {told}, tokenising; {cell}",
                "≤",
                asked,
                results.ratio(
                    (ours, cell), (engine, Cell(cell.workload, IN_PROCESS)), cpu_s_per_1000
                ),
            )
    yield Target(
        f"{variant}: texts/s ÷ bare uvicorn; {query}",
        "≥",
        0.9,
        results.ratio((ours, query), (bare, query), texts_per_s),
    )
    alone = Cell(QUERY, 1)
    yield Target(
        f"{variant}: p50 − bare uvicorn's; {alone}",
        "≤",
        2.5,
        results.difference((ours, alone), (bare, alone), p50_ms),
        " ms",
    )
    unsorted, here = Row(ENGINE, variant, ARRIVAL), Cell(MIXED, IN_PROCESS)
    yield Target(
        f"{variant}: engine, sorted token batches ÷ batches of 16 in order of arrival",
        "≥",
        3.0,
        results.ratio((Row(ENGINE, variant, SORTED), here), (unsorted, here), texts_per_s),
    )


def stock_ratios(results: Results) -> list[tuple[str, float | None]]:
    """What Serve's stock proxy and settings cost, CPU per text ÷ ours, 16 clients."""
    found = []
    for row in results.rows:
        if row.subject != STOCK:
            continue
        mine = Row(OURS, row.variant, row.mode)
        for cell in results.cells:
            if cell.clients == CLIENTS:
                costs = results.ratio((row, cell), (mine, cell), cpu_s_per_1000)
                found.append((f"{row}, {cell}", costs))
    return found


def _served_s(results: Results) -> float | None:
    def whole(standing: Standing) -> float | None:
        if standing.prepared_s is None:
            return None
        return standing.prepared_s + standing.ready_s

    return results.standing(OURS, whole)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
