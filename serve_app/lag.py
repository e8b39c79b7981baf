"""How long what a router has to do waits for its only thread.

A timer that is due every `EVERY_S` tells by how much it is late. While it is overdue, the lag is what
has passed since: an event loop that is busy cannot run the timer that would say so.
"""

from __future__ import annotations

import asyncio

EVERY_S = 0.05
FADES = 0.5  # of the last lag that is left a tick later


class Lag:
    """Of the running event loop, from `start` on."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due_s = 0.0
        self._last_ms = 0.0

    def start(self) -> None:
        """Begin to watch; the second time does nothing."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._plan(self._loop)

    def now_ms(self) -> float:
        """Milliseconds that work waits at present; 0 before the start."""
        if self._loop is None:
            return 0.0
        return max(self._last_ms, (self._loop.time() - self._due_s) * 1000)

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s = loop.time() + EVERY_S
        loop.call_at(self._due_s, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        late_ms = max(loop.time() - self._due_s, 0.0) * 1000
        self._last_ms = max(late_ms, FADES * self._last_ms)
        self._plan(loop)
