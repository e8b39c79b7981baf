"""A phase's numbers, from rows whose numbers are known."""

from dataclasses import replace

import pytest

from loadtests.measures import measure, within_budget
from loadtests.records import Row, to_columns

ROW = Row(
    phase="x",
    hint_class="tight",
    intended_s=100.0,
    sent_s=100.0,
    finished_s=100.01,
    latency_ms=10.0,
    status=200,
    variant="a",
    fidelity=1.0,
    budget_ms=25.0,
    within_budget=True,
    texts=2,
    error="",
)


def _refused(row: Row, status: int) -> Row:
    return replace(row, status=status, variant="", fidelity=None, within_budget=False)


def test_refusals_and_errors_are_counted_apart() -> None:
    """429, 504, other statuses and no answer are four kinds; none has a latency or a fidelity."""
    found = measure(
        to_columns(
            [
                ROW,
                replace(ROW, intended_s=101.0, finished_s=102.0, fidelity=0.9, variant="b"),
                *(_refused(ROW, status) for status in (429, 429, 504, 500, 0)),
            ]
        ),
        {},
    )
    assert found is not None
    assert (found.requests, found.answered, found.rejected) == (7, 2, 2)
    assert (found.expired, found.errors) == (1, 2)
    assert found.fidelity == pytest.approx(0.95)
    assert found.p99_ms == 10.0
    assert found.variants == {"a": 0.5, "b": 0.5}
    assert found.throughput == pytest.approx(1.0)
    assert found.texts_per_s == pytest.approx(2.0)
    assert found.offered_per_s == pytest.approx(7.0)


def test_only_feasible_requests_with_a_budget_are_due() -> None:
    """Half of a class that an idle server refuses to half is all that can be asked; best has no budget."""
    met, refused = ROW, _refused(ROW, 429)
    best = replace(refused, hint_class="best", budget_ms=None, within_budget=None)
    rows = to_columns([met, refused, best, best])
    assert within_budget(rows, {}) == pytest.approx(0.5)
    assert within_budget(rows, {"tight": 0.5}) == pytest.approx(1.0)
    assert within_budget(rows, {"tight": 0.0}) is None
    assert within_budget(to_columns([best]), {}) is None


def test_nothing_measured_is_none() -> None:
    """No rows, no measures; only refusals, no latencies."""
    assert measure(to_columns([]), {}) is None
    found = measure(to_columns([_refused(ROW, 429)]), {})
    assert found is not None
    assert (found.p50_ms, found.fidelity, found.within_budget) == (None, None, 0.0)
