"""A phase's numbers, from rows whose numbers are known."""

from dataclasses import replace

import numpy as np
import pytest

from loadtests.measures import budget_counts, due_counts, measure, within_budget
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
    feasible=True,
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
        )
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
    """What an idle server refuses is asked of none, what nobody surveyed is; best has no budget."""
    met, refused = ROW, _refused(ROW, 429)
    best = replace(refused, hint_class="best", budget_ms=None, within_budget=None)
    infeasible, unknown = (replace(refused, feasible=known) for known in (False, None))
    assert within_budget(to_columns([met, refused, best, best])) == 0.5
    assert within_budget(to_columns([met, unknown, best, best])) == 0.5
    assert within_budget(to_columns([met, infeasible, best, best])) == 1.0
    assert within_budget(to_columns([infeasible, best])) is None
    assert within_budget(to_columns([best])) is None


def test_due_requests_are_counted_one_by_one() -> None:
    """Of 50 requests whose texts are feasible or not by chance, exactly the feasible ones are due, in each bin."""
    rng = np.random.default_rng(5)
    able, met = rng.random(50) < 0.72, rng.random(50) < 0.9
    rows = [
        replace(ROW, intended_s=100 + i / 10, feasible=bool(a), within_budget=bool(a and m))
        for i, (a, m) in enumerate(zip(able, met, strict=True))
    ]
    bulk = [
        replace(row, hint_class="bulk", budget_ms=None, within_budget=None, feasible=True)
        for row in rows[:10]
    ]
    edges = np.arange(100.0, 106.0)
    by_second = able.reshape(5, 10), (able & ~met).reshape(5, 10)
    due, missed = budget_counts(to_columns(rows + bulk), edges)
    assert due.tolist() == by_second[0].sum(axis=1).tolist()
    assert missed.tolist() == by_second[1].sum(axis=1).tolist()
    beside = np.array([10, 0, 0, 0, 0])
    assert due_counts(to_columns(rows + bulk), edges).tolist() == (due + beside).tolist()
    share = (able & met).sum() / able.sum()
    assert within_budget(to_columns(rows + bulk)) == pytest.approx(share, abs=1e-12)


def test_an_answer_to_an_infeasible_request_makes_up_for_nothing() -> None:
    """A request that was met though the idle server would not admit it hides no miss of another."""
    lucky, missed = replace(ROW, feasible=False), _refused(ROW, 504)
    assert within_budget(to_columns([lucky, missed])) == 0.0


def test_nothing_measured_is_none() -> None:
    """No rows, no measures; only refusals, no latencies."""
    assert measure(to_columns([])) is None
    found = measure(to_columns([_refused(ROW, 429)]))
    assert found is not None
    assert (found.p50_ms, found.fidelity, found.within_budget) == (None, None, 0.0)
