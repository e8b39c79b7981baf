"""The price of a queue: nothing in quiet, more while it stands, less when it is gone."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.price import FORGOTTEN_S, LEAST, MOST, TARGET_WAIT_MS, moved

STEP_S = 0.01


def _look(waits_ms: Iterable[float], *, start: float = LEAST) -> list[float]:
    """The price of a token as one looks at a queue again and again."""
    found, price = [], start
    for wait_ms in waits_ms:
        price = moved(price, wait_ms, STEP_S)
        found.append(price)
    return found


def _stands(wait_ms: float, seconds: float) -> list[float]:
    return [wait_ms] * round(seconds / STEP_S)


@given(st.lists(st.floats(0, TARGET_WAIT_MS), max_size=50))
def test_there_is_no_price_in_quiet(waits_ms: list[float]) -> None:
    """Waits up to the target cost nothing, however often one looks."""
    assert set(_look(waits_ms)) <= {LEAST}


@given(st.floats(1.5 * TARGET_WAIT_MS, 1000))
def test_the_price_grows_with_a_standing_queue(wait_ms: float) -> None:
    """Never down while the queue stands, faster the longer it is, and not without end."""
    found = _look(_stands(wait_ms, 10))
    longer = _look(_stands(2 * wait_ms, 10))
    assert found == sorted(found)
    assert all(more >= less for less, more in zip(found, longer, strict=True))
    assert found[-1] == pytest.approx(MOST)


def test_the_price_falls_when_the_queue_is_gone() -> None:
    """From the most to nothing within two seconds of short waits."""
    falling = _look(_stands(0, 2), start=MOST)
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > LEAST
    assert falling[-1] == LEAST


def test_a_price_that_nobody_looked_at_is_forgotten() -> None:
    """After half a second without a look it says nothing, whatever the queue is then."""
    assert moved(MOST, 100, FORGOTTEN_S * 0.99) == MOST
    assert moved(MOST, 100, FORGOTTEN_S * 1.01) == LEAST


def test_a_burst_that_is_over_at_once_has_no_price_worth_mentioning() -> None:
    """One long wait seen once, in a quiet second, makes nobody give way."""
    found = _look([*_stands(1, 0.5), 200.0, *_stands(1, 0.5)])
    assert max(found) * 512 < 1
    assert found[-1] == LEAST
