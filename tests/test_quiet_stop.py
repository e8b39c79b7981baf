"""How a local server is told to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from serve_app.quiet_stop import SIGNALS, interrupt_once


@pytest.fixture
def handlers() -> Iterator[None]:
    """Those of this process come back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("first", SIGNALS)
def test_only_the_first_signal_interrupts(first: signal.Signals) -> None:
    """`timeout` sends two at once: the second one must not interrupt the stopping."""
    interrupt_once()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(first)
    for number in SIGNALS:
        signal.raise_signal(number)
