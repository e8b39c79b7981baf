"""The price of a queue: nothing in quiet, more while it stands, less when it is gone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.price import FORGOTTEN_S, MOST, TARGET_WAIT_MS, Price

STEP_S = 0.01


def _look(price: Price, wait_ms: float, *, from_s: float, seconds: float) -> list[float]:
    """The price of a token while a queue stays as it is."""
    return [price.look(wait_ms, from_s + i * STEP_S) for i in range(1, round(seconds / STEP_S) + 1)]


@given(st.lists(st.floats(0, TARGET_WAIT_MS), max_size=50))
def test_there_is_no_price_in_quiet(waits_ms: list[float]) -> None:
    """Waits up to the target cost nothing, however often one looks."""
    price = Price()
    assert all(price.look(wait_ms, i * STEP_S) == 0 for i, wait_ms in enumerate(waits_ms))


@given(st.floats(1.5 * TARGET_WAIT_MS, 1000))
def test_the_price_grows_with_a_standing_queue(wait_ms: float) -> None:
    """Never down while the queue stands, faster the longer it is, and not without end."""
    found = _look(Price(), wait_ms, from_s=0, seconds=10)
    longer = _look(Price(), 2 * wait_ms, from_s=0, seconds=10)
    assert found == sorted(found)
    assert all(more >= less for less, more in zip(found, longer, strict=True))
    assert found[-1] == pytest.approx(MOST)


def test_the_price_falls_when_the_queue_is_gone() -> None:
    """From the most to nothing within two seconds of short waits."""
    price = Price()
    _look(price, 100, from_s=0, seconds=10)
    falling = _look(price, 0, from_s=10, seconds=2)
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > 0
    assert falling[-1] == 0


def test_a_price_that_nobody_looked_at_is_forgotten() -> None:
    """After half a second without a look it says nothing, whatever the queue is then."""
    price = Price()
    _look(price, 100, from_s=0, seconds=1)
    assert price.look(100, 1 + FORGOTTEN_S * 0.99) > 0
    assert price.look(100, 1 + FORGOTTEN_S * 2) == 0


def test_a_burst_that_is_over_at_once_has_no_price_worth_mentioning() -> None:
    """One long wait seen once, in a quiet second, makes nobody give way."""
    price = Price()
    found = [price.look(200.0 if i == 50 else 1.0, i * STEP_S) for i in range(100)]
    assert max(found) * 512 < 1
    assert found[-1] == 0
