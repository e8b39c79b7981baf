"""How late a loop's timers are, on a loop whose time the test tells."""

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from serve_app import lag
from serve_app.lag import EVERY_S, FADES, Lag


class FakeLoop:
    """Timers that run when the test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now_s

    def call_at(self, when_s: float, do: Callable[..., None], *args: object) -> None:
        self.timers.append((when_s, lambda: do(*args)))

    def pass_time(self, seconds: float) -> None:
        """So much later the loop comes to what is due."""
        self.now_s += seconds
        due = [timer for timer in self.timers if timer[0] <= self.now_s]
        self.timers = [timer for timer in self.timers if timer[0] > self.now_s]
        for _, do in due:
            do()


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> FakeLoop:
    fake = FakeLoop()
    running = cast("asyncio.AbstractEventLoop", fake)
    monkeypatch.setattr(lag.asyncio, "get_running_loop", lambda: running)
    return fake


@pytest.fixture
def watched(loop: FakeLoop) -> Lag:
    assert not loop.timers
    found = Lag()
    found.start()
    return found


def test_a_loop_in_time_has_no_lag(loop: FakeLoop, watched: Lag) -> None:
    """Timers that run when they are due tell of none."""
    for _ in range(5):
        loop.pass_time(EVERY_S)
        assert watched.now_ms() == pytest.approx(0, abs=1e-6)


def test_before_the_start_there_is_none() -> None:
    """Nobody watches yet."""
    assert Lag().now_ms() == 0


def test_an_overdue_timer_tells_while_the_loop_is_busy(loop: FakeLoop, watched: Lag) -> None:
    """A busy loop cannot run the timer that would say so."""
    loop.now_s += EVERY_S + 0.2
    assert watched.now_ms() == pytest.approx(200)
    loop.now_s += 0.1
    assert watched.now_ms() == pytest.approx(300)


def test_a_lag_is_remembered_and_fades(loop: FakeLoop, watched: Lag) -> None:
    """Half of it is left a tick later: what was late just now may be late again."""
    loop.pass_time(EVERY_S + 0.2)
    assert watched.now_ms() == pytest.approx(200)
    for ticks in range(1, 5):
        loop.pass_time(EVERY_S)
        assert watched.now_ms() == pytest.approx(200 * FADES**ticks)


def test_a_second_start_does_nothing(loop: FakeLoop, watched: Lag) -> None:
    """One timer is enough."""
    watched.start()
    assert len(loop.timers) == 1
