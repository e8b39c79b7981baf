"""The arithmetic of a benchmark."""

import pytest

from loadtests.bench.medians import difference, median, percentile, ratio, rotated


def test_every_item_comes_first_once() -> None:
    """Over as many rounds as there are items each is first, and none is lost."""
    orders = [rotated("abc", turns) for turns in range(3)]
    assert [order[0] for order in orders] == ["a", "b", "c"]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert rotated("abc", 4) == rotated("abc", 1)
    assert rotated([], 2) == []


def test_percentiles_are_values_that_occurred() -> None:
    """The nearest rank: of 100 values the 99th, of one that one, of none nothing."""
    values = [float(n) for n in range(100, 0, -1)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile([7.0], 0.99) == 7
    assert percentile([], 0.5) is None


def test_rounds_without_an_answer_do_not_count() -> None:
    """A median is of what is there."""
    assert median([3.0, None, 1.0]) == 2
    assert median([None]) is None


def test_ratios_are_of_the_same_round() -> None:
    """A slow round touches both sides alike: the ratio of medians would be 6, and 2 is right."""
    left = {0: 2.0, 1: 20.0, 2: 60.0}
    right = {0: 1.0, 1: 10.0, 2: 3.0}
    assert ratio(left, right) == 2
    assert difference(left, right) == 10


@pytest.mark.parametrize("right", [{}, {1: 2.0}, {0: None}, {0: 0.0}])
def test_without_a_partner_there_is_no_ratio(right: dict[int, float | None]) -> None:
    """A round that one side lacks, or where it is nothing, says nothing."""
    assert ratio({0: 1.0}, right) is None
