"""Batches of like length: bounded padding, nobody starves, nothing is lost."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.batching import (
    CALLS_EACH,
    FEWEST_TOKENS,
    LEAST_BATCH_MS,
    MOST_BATCH_MS,
    may_leave,
    next_batch,
    short_batches,
    take_tokens,
)
from tests.policy.profiles import profile_of

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


@pytest.mark.parametrize(
    ("base_ms", "longest_ms"),
    [
        pytest.param(0.5, LEAST_BATCH_MS, id="a cheap start, and still not many calls"),
        pytest.param(3.0, 18.0, id="six times what a batch costs at least"),
        pytest.param(10.0, MOST_BATCH_MS, id="never longer than who waits can bear"),
    ],
)
def test_a_batch_is_no_longer_than_pays(base_ms: float, longest_ms: float) -> None:
    """Up to a token; a profile that wants less keeps its own."""
    wanted = profile_of(base_ms, 0.1, batch_tokens=4096)
    found = short_batches(wanted)
    assert longest_ms - 0.1 < found.fitted_ms(found.batch_tokens) <= longest_ms + 1e-9
    modest = profile_of(base_ms, 0.1, batch_tokens=20)
    assert short_batches(modest) is modest


@given(st.floats(0, 100), st.floats(0.001, 50), st.integers(FEWEST_TOKENS, 10_000))
def test_a_shorter_batch_still_holds_a_few_tokens(
    base_ms: float, per_token_ms: float, batch_tokens: int
) -> None:
    """However slow the engine; and it is never made longer."""
    found = short_batches(profile_of(base_ms, per_token_ms, batch_tokens=batch_tokens))
    assert FEWEST_TOKENS <= found.batch_tokens <= batch_tokens


@pytest.mark.parametrize(
    ("busy", "cores", "calls"),
    [
        (0, 1, CALLS_EACH),
        (1, 1, 0),
        (1, 2, CALLS_EACH),
        (2, 2, 0),
        (3, 1.8, 0),
        (3, 16, CALLS_EACH),
    ],
)
def test_a_call_waits_at_the_door_only_where_cores_are_left(
    busy: int, cores: float, calls: int
) -> None:
    """Once as many engines are busy as there are cores, no more calls leave."""
    for replicas in (1, 3):
        assert _most_calls(replicas, streams=1, busy=busy, cores=cores) == calls * replicas


def _most_calls(replicas: int, *, streams: int, busy: int, cores: float) -> int:
    calls = 0
    while may_leave(calls, replicas=replicas, streams=streams, busy=busy, cores=cores):
        calls += 1
    return calls


@pytest.mark.parametrize(
    ("calls", "streams", "busy", "cores", "leaves"),
    [
        pytest.param(0, 4, 2, 2, False, id="all cores are busy, with whatever it be"),
        pytest.param(0, 4, 1, 2, True, id="a core is idle"),
        pytest.param(1, 1, 9, math.inf, True, id="a device of its own"),
        pytest.param(1, 4, 1, 2, True, id="a core is idle and a stream free"),
        pytest.param(1, 4, 2, 2, False, id="no core is idle"),
        pytest.param(3, 4, 3, 8, True, id="the last stream"),
        pytest.param(4, 4, 4, 8, False, id="all streams are taken, and none waits at the door"),
        pytest.param(1, 1, 1, 2, True, id="one stream: one at the door"),
        pytest.param(2, 2, 1, 2, False, id="two streams are two calls, though one has just ended"),
    ],
)
def test_a_replica_has_as_many_calls_as_streams_while_cores_are_idle(
    calls: int, streams: int, busy: int, cores: float, *, leaves: bool
) -> None:
    """And none where they are not."""
    assert may_leave(calls, replicas=1, streams=streams, busy=busy, cores=cores) is leaves


@given(st.integers(1, 5), st.integers(1, 8), st.integers(0, 40), st.floats(0.5, 64))
def test_calls_on_their_way_are_bounded(
    replicas: int, streams: int, busy: int, cores: float
) -> None:
    """None on busy cores; else as many as all replicas run, or two each; never fewer for more streams."""
    found = _most_calls(replicas, streams=streams, busy=busy, cores=cores)
    assert found == (replicas * max(streams, CALLS_EACH) if busy < cores else 0)
    assert found <= _most_calls(replicas, streams=streams + 1, busy=busy, cores=cores)
