"""Batches of like length: bounded padding, nobody starves, nothing is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.batching import next_batch, take_tokens

LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=60)
BUDGETS = st.integers(1, 4096)


@pytest.mark.parametrize(
    ("lengths", "batch_tokens", "expected"),
    [
        ([5], 64, [0]),
        ([100], 64, [0]),  # one text over the budget runs alone
        ([10, 3, 10, 50, 9], 40, [1, 4, 0, 2]),  # 4 × 10 fits, 5 × 50 does not
        ([10, 3, 10, 50, 9], 39, [1, 4, 0]),
        ([10, 3, 9], 20, [2, 0]),  # the nearest shorter neighbour first: it wastes least
        ([3, 50, 4], 8, [0, 2]),
        ([4, 4, 4], 8, [0, 1]),  # equals in order of arrival
    ],
)
def test_the_oldest_text_is_joined_by_its_neighbours_in_length(
    lengths: list[int], batch_tokens: int, expected: list[int]
) -> None:
    """Shorter neighbours fill the batch without widening it, then longer ones while they fit."""
    assert next_batch(lengths, batch_tokens) == expected


@given(LENGTHS, BUDGETS)
def test_the_next_batch_holds_the_oldest_text(lengths: list[int], batch_tokens: int) -> None:
    """No text starves: the one that waits longest is always taken, and none is taken twice."""
    batch = next_batch(lengths, batch_tokens)
    assert 0 in batch
    assert len(set(batch)) == len(batch)
    assert set(batch) <= set(range(len(lengths)))


@given(LENGTHS, BUDGETS)
def test_the_next_batch_is_within_its_padded_tokens(lengths: list[int], batch_tokens: int) -> None:
    """Count × longest stays in the budget, unless one text alone exceeds it."""
    batch = next_batch(lengths, batch_tokens)
    padded = len(batch) * max(lengths[i] for i in batch)
    assert padded <= batch_tokens or len(batch) == 1


@given(LENGTHS, BUDGETS)
def test_the_next_batch_is_sorted_by_length(lengths: list[int], batch_tokens: int) -> None:
    """Shortest first, so that neighbours in the batch are neighbours in length."""
    taken = [lengths[i] for i in next_batch(lengths, batch_tokens)]
    assert taken == sorted(taken)


@given(LENGTHS, BUDGETS)
def test_the_next_batch_leaves_no_text_that_would_fit(
    lengths: list[int], batch_tokens: int
) -> None:
    """A text is left out only where one more of its length class would break the budget."""
    batch = next_batch(lengths, batch_tokens)
    left = [n for i, n in enumerate(lengths) if i not in batch]
    longest = max(lengths[i] for i in batch)
    for length in left:
        assert (len(batch) + 1) * max(length, longest) > batch_tokens


@given(LENGTHS, BUDGETS)
def test_batch_after_batch_takes_every_text_once(lengths: list[int], batch_tokens: int) -> None:
    """Draining a queue ends, with all texts taken and none twice."""
    waiting = list(range(len(lengths)))
    taken: list[int] = []
    while waiting:
        batch = next_batch([lengths[i] for i in waiting], batch_tokens)
        taken += [waiting[i] for i in batch]
        waiting = [text for i, text in enumerate(waiting) if i not in batch]
    assert sorted(taken) == list(range(len(lengths)))


@given(LENGTHS, BUDGETS)
def test_a_call_carries_as_many_of_the_oldest_texts_as_fit(
    lengths: list[int], call_tokens: int
) -> None:
    """At least one, never over the limit with two or more, and never fewer than fit."""
    count = take_tokens(lengths, call_tokens)
    assert 1 <= count <= len(lengths)
    assert sum(lengths[:count]) <= call_tokens or count == 1
    assert count == len(lengths) or sum(lengths[: count + 1]) > call_tokens


@pytest.mark.parametrize(
    ("lengths", "call_tokens", "expected"),
    [([10, 10, 10], 20, 2), ([10, 10, 10], 19, 1), ([50, 1], 20, 1), ([1, 1], 100, 2)],
)
def test_a_call_is_filled_to_its_limit_exactly(
    lengths: list[int], call_tokens: int, expected: int
) -> None:
    """The limit itself still fits; a text over the limit travels alone."""
    assert take_tokens(lengths, call_tokens) == expected
