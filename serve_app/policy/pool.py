"""What variants share: the cores of their hosts; a variant on a device of its own has a pool to itself.

A pool knows what its engines run and what waits for them, how much they slow each other, and what its time is
worth to others. That is its rent: a request that takes a more faithful variant than the cheapest delays all that
come while the cores are busy, the more of them the more are asked for,

    rent  = RENT * min(load, MOST_LOAD)        normalised fidelity a core-millisecond; 0 while nothing runs
    load  = work asked for, at its cheapest / cores, over the last second or so

and goes where its fidelity exceeds the rent of a text's work most. In quiet times that is the best variant for
all; the busier the cores, the shorter must a text be for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from serve_app.policy.contention import Contention
from serve_app.policy.turns import Line

RENT = 0.5
MOST_LOAD = 2.0
ASKED_OVER_S = 1.0


class Pool:
    """Cores that some variants share, as one router sees them. Times are seconds on the caller's clock."""

    __slots__ = (
        "_asked_ms",
        "_asked_s",
        "_hosts",
        "_load",
        "_load_s",
        "_of_a_host",
        "busy",
        "contention",
        "cores",
        "is_shared",
        "line",
        "rent",
        "width",
    )

    def __init__(self, *, cores: float, is_shared: bool = True) -> None:
        """Nobody has asked for anything.

        Args:
            cores: of a host.
            is_shared: whether these are cores, which batches of several variants share; else one variant has a
                device to itself, and only its own streams are its limit.
        """
        self.is_shared = is_shared
        self.cores = self._of_a_host = cores
        self.width = max(1, math.ceil(cores))
        self.busy = 0  # batches that its engines run, as far as the router knows
        self.line = Line()
        self.rent = 0.0  # of a core-millisecond, as of the last look
        self.contention = Contention(cores=cores if is_shared else math.inf)
        self._asked_ms = 0.0
        self._asked_s = 0.0
        self._load, self._load_s = 0.0, math.nan  # and as of when
        self._hosts: dict[str, Collection[str]] = {}

    def heard(self, variant: str, hosts: Collection[str], *, places: int) -> None:
        """On which hosts a variant's replicas are, which are taken to be alike; and how many batches they run."""
        self._hosts[variant] = hosts
        count = max(1, len(set().union(*self._hosts.values())))
        self.cores = count * self._of_a_host if self.is_shared else places
        self.width = max(1, math.ceil(self.cores))
        self._load_s = math.nan

    def asked(self, work_ms: float, *, now_s: float) -> None:
        """Somebody asked for so much work, were it done as cheaply as here can be."""
        fade = math.exp((self._asked_s - now_s) / ASKED_OVER_S)
        self._asked_ms = self._asked_ms * fade + work_ms
        self._asked_s = now_s
        self._load_s = math.nan

    def load(self, now_s: float) -> float:
        """Work asked for / what all cores can do."""
        if now_s != self._load_s:
            fade = math.exp((self._asked_s - now_s) / ASKED_OVER_S)
            self._load = self._asked_ms * fade / (1000 * ASKED_OVER_S * self.cores)
            self._load_s = now_s
        return self._load

    def look(self, now_s: float) -> None:
        """Set the rent as of now. Where nothing runs, nobody is delayed."""
        self.rent = RENT * min(self.load(now_s), MOST_LOAD) if self.busy else 0.0
