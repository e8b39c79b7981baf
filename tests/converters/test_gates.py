"""The gates: what a variant must keep to be deployed unless named."""

from dataclasses import replace

import pytest

from converters.gates import GATES, gate
from serve_app.errors import ConversionError
from serve_app.manifest import Drift, Fidelity, Overlap, TaskScore

PERFECT = Fidelity(
    mean=1.0,
    p1=1.0,
    min=1.0,
    overlap=Overlap(both=1.0, queries=1.0, documents=1.0),
    drift=Drift(alone=0.0, sorted_batch=0.0, beside_longest=0.0, padded=0.0),
    probe_texts=400,
    tasks={},
)


@pytest.mark.parametrize("precision", [*GATES, "int8-dynamic"])
def test_perfect_vectors_pass_every_gate(precision: str) -> None:
    """FP32's own vectors may be deployed whatever the precision calls itself."""
    assert gate(precision, PERFECT) is None


@pytest.mark.parametrize(
    ("precision", "at_limit", "below"),
    [
        ("int8", 0.98, 0.9799),
        ("int8-dynamic", 0.98, 0.9799),
        ("fp16", 0.999, 0.9989),
        ("bf16", 0.999, 0.9989),
    ],
)
def test_the_first_percentile_has_a_floor(precision: str, at_limit: float, below: float) -> None:
    """INT8 keeps 0.98 and 16 bits keep 0.999; the limit itself passes, a little less does not."""
    assert gate(precision, replace(PERFECT, p1=at_limit)) is None
    reason = gate(precision, replace(PERFECT, p1=below))
    assert reason is not None
    assert f"{below}" in reason
    assert f"{at_limit}" in reason


def test_fp32_has_parity_on_every_text() -> None:
    """One text of an FP32 variant that is off by more than 1e-5 keeps it off the ladder."""
    assert gate("fp32", replace(PERFECT, min=1 - 0.9e-5)) is None
    assert "1.1e-05" in str(gate("fp32", replace(PERFECT, min=1 - 1.1e-5)))


@pytest.mark.parametrize(
    ("overlap", "passes"),
    [
        (Overlap(both=0.94, queries=0.95, documents=0.96), True),
        (Overlap(both=0.939, queries=0.95, documents=0.96), False),
    ],
)
def test_the_overlap_of_both_sides_is_gated(overlap: Overlap, *, passes: bool) -> None:
    """INT8 keeps 94 % of FP32's top 10 when it embeds queries and documents."""
    reason = gate("int8", replace(PERFECT, overlap=overlap))
    assert passes == (reason is None)
    assert passes or "93.9%" in str(reason)


@pytest.mark.parametrize("way", ["alone", "sorted_batch", "beside_longest", "padded"])
def test_drift_is_gated_whichever_way_it_shows(way: str) -> None:
    """A vector that moves by more than 1e-4 any of four ways keeps any precision off the ladder."""
    still, moving = (
        replace(PERFECT, drift=replace(PERFECT.drift, **{way: moved})) for moved in (1e-4, 1.1e-4)
    )
    for precision in GATES:
        assert gate(precision, still) is None
        assert "batch-mates" in str(gate(precision, moving))


def test_a_task_may_lose_half_a_point() -> None:
    """A variant that loses over 0.5 points on a task that was asked for is named with the task."""
    lost = {"nDCG@10": TaskScore(points=79.0, fp32_points=79.8)}
    kept = {"nDCG@10": TaskScore(points=79.4, fp32_points=79.8)}
    assert gate("int8", replace(PERFECT, tasks=kept)) is None
    assert "nDCG@10 loses 0.80 points" in str(gate("int8", replace(PERFECT, tasks=lost)))


def test_all_misses_are_told_at_once() -> None:
    """Two misses are two reasons in one line."""
    moving = replace(PERFECT, p1=0.9, drift=replace(PERFECT.drift, padded=0.02))
    reason = str(gate("int8", moving))
    assert "0.9000" in reason
    assert "2.0e-02" in reason
    assert "\n" not in reason


def test_an_unknown_precision_is_refused() -> None:
    """A precision without gates cannot slip onto the ladder."""
    with pytest.raises(ConversionError, match="no gates for precision 'int4'"):
        gate("int4", PERFECT)
