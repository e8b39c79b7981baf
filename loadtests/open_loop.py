"""Open loop: each request goes out when it is due, however long those before it take.

A user who waits for one answer before the next request sends less to a slow server, and so never
sees how slow it is ("coordinated omission", Gil Tene 2013). Here nobody waits: latency counts from
the time at which a request was due, also where this process itself was late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import gevent
from gevent.pool import Group

from loadtests.arrivals import Offsets
from loadtests.sending import now_s
from loadtests.workload import Request

LEAD_S = 0.5  # all processes have begun by then

Send = Callable[[Request, float], None]


class Dispatcher:
    """Sends requests on a schedule, each in a greenlet of its own."""

    def __init__(self, offsets: Offsets, requests: Iterable[Request], send: Send) -> None:
        self._offsets = offsets
        self._requests = requests
        self._send = send
        self._under_way = Group()
        self._start_s = 0.0
        self._sent = 0

    def run(self) -> None:
        """Send everything, and return when the last answer is there."""
        self._start_s = now_s() + LEAD_S
        due = (self._start_s + self._offsets).tolist()
        for intended_s, request in zip(due, self._requests, strict=False):
            gevent.sleep(max(intended_s - now_s(), 0.0))
            self._under_way.start(gevent.Greenlet(self._send, request, intended_s))
            self._sent += 1
        self._under_way.join()

    def cut_off(self, *, grace_s: float) -> int:
        """Stop after `run` was killed; returns how many were due or under way and got no row."""
        overdue = int((self._start_s + self._offsets[self._sent :] <= now_s()).sum())
        self._under_way.join(timeout=grace_s)
        dropped = len(self._under_way)
        self._under_way.kill()
        return dropped + (overdue if self._start_s else 0)
