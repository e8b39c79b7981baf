"""How our rungs stand beside peers, as issue 6 asks: 16 clients, medians of each round's ratio."""

from __future__ import annotations

from collections.abc import Sequence

from loadtests.bench.ours import OURS
from loadtests.bench.results import Figure, Results, cpu_s_per_1000, texts_per_s
from loadtests.bench.samples import Cell, Row
from loadtests.bench.targets import CLIENTS, Target
from loadtests.bench.workloads import MIXED, QUERY
from loadtests.peers.catalogue import (
    INFINITY,
    OPTIMUM_INT8,
    RAY_EMBEDDING,
    SENTENCE_TRANSFORMERS,
    VLLM,
)


def peer_targets(results: Results, *, best: str, cheap: str) -> list[Target]:
    """All that the issue asks of peers.

    Args:
        results: what was measured.
        best: our cheapest variant within a thousandth of FP32.
        cheap: our cheapest variant at fidelity 0.98 or above.
    """
    return [
        *_exact(results, Row(OURS, best)),
        *_int8(results, Row(OURS, cheap)),
        *_sentence_transformers(results, Row(OURS, best), 4.0),
        *_sentence_transformers(results, Row(OURS, cheap), 6.0),
        *_ray_embedding(results, (Row(OURS, best), Row(OURS, cheap))),
    ]


def _exact(results: Results, ours: Row) -> list[Target]:
    exact = [
        row for row in results.rows if row.subject in {INFINITY, VLLM} and row.mode != OPTIMUM_INT8
    ]
    return [
        _against(results, ours, exact, Cell(name, CLIENTS), asked, less_cpu=True)
        for name, asked in ((MIXED, 3.0), (QUERY, 2.8))
    ]


def _int8(results: Results, ours: Row) -> list[Target]:
    int8 = [Row(INFINITY, mode=OPTIMUM_INT8)]
    return [
        _against(results, ours, int8, Cell(name, CLIENTS), asked, less_cpu=True)
        for name, asked in ((MIXED, 2.0), (QUERY, 1.8))
    ]


def _sentence_transformers(results: Results, ours: Row, asked: float) -> list[Target]:
    settings = [row for row in results.rows if row.subject == SENTENCE_TRANSFORMERS]
    return [_against(results, ours, settings, Cell(MIXED, CLIENTS), asked, less_cpu=False)]


def _ray_embedding(results: Results, rungs: Sequence[Row]) -> list[Target]:
    peers, cell = [Row(RAY_EMBEDDING)], Cell(QUERY, CLIENTS)
    return [
        _against(results, row, peers, cell, 20.0, less_cpu=False) for row in dict.fromkeys(rungs)
    ]


def _against(
    results: Results, ours: Row, peers: Sequence[Row], cell: Cell, asked: float, *, less_cpu: bool
) -> Target:
    """Against whichever of the peers does best here."""
    figure: Figure = cpu_s_per_1000 if less_cpu else texts_per_s
    found = {row: value for row in peers if (value := results.median(row, cell, figure))}
    what = "CPU per text, {} ÷ {}; {}" if less_cpu else "texts/s, {} ÷ {}; {}"
    if not found:
        names = " or ".join(dict.fromkeys(row.subject for row in peers)) or "a peer"
        pair = (names, ours) if less_cpu else (ours, names)
        return Target(what.format(*pair, cell), "≥", asked, None, "×")
    peer = (min if less_cpu else max)(found, key=found.__getitem__)
    over, under = (peer, ours) if less_cpu else (ours, peer)
    ratio = results.ratio((over, cell), (under, cell), figure)
    return Target(what.format(over, under, cell), "≥", asked, ratio, "×")
