"""The micro-benchmark of a decision: what it runs, not how long that takes."""

from loadtests.decision_bench import measured


def test_each_part_is_timed_as_often_as_asked() -> None:
    """Whole decisions by two clocks, and the parts of their explanation, in states that can be met."""
    found = list(measured(120, seed=1))
    assert [timed.what.strip() for timed in found] == [
        "Brain.decide",
        "Brain.decide, CPU",
        "Brain.candidates",
        "routing.decide",
    ]
    assert all(len(timed.us) == 120 and timed.us == sorted(timed.us) for timed in found)
    assert "p99" in str(found[0])
