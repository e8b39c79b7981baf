"""What variants share: the cores of their hosts; a variant on a device of its own has a pool to itself.

A pool knows what its engines run and what waits for them, how much they slow each other, and what its time is
worth to others. That is its rent: a request that takes a more faithful variant than the cheapest delays all that
come while the cores are busy, the more of them the more are asked for,

    rent  = RENT * pace * min(load, MOST_LOAD)    normalised fidelity a core-millisecond; 0 while nothing runs
    load  = pace * work asked for, at its cheapest / cores, over the last second or so
    pace  = how many times longer than its profile a batch takes while all cores are busy

and goes where its fidelity exceeds the rent of a text's work most. In quiet times that is the best variant for
all; the busier the cores, the shorter must a text be for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from serve_app.policy.contention import Contention
from serve_app.policy.turns import Line

RENT = 0.17
MOST_LOAD = 2.0
ASKED_OVER_S = 1.0
CAME_OVER_S = 0.2  # of who is let in: a burst shall be noticed while it begins
TURNS_OVER_MS = 2000.0  # work over which the mean of turns is taken
FIRST_TURNS_MS = 100.0  # until there is any


class Pool:
    """Cores that some variants share, as one router sees them. Times are seconds on the caller's clock."""

    __slots__ = (
        "_asked_ms",
        "_asked_s",
        "_came_ms",
        "_came_s",
        "_hosts",
        "_inflow",
        "_inflow_s",
        "_load",
        "_load_s",
        "_of_a_host",
        "busy",
        "contention",
        "cores",
        "is_shared",
        "line",
        "rent",
        "turns_ms",
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
        self._came_ms = 0.0
        self._came_s = 0.0
        self._inflow, self._inflow_s = 0.0, math.nan  # and as of when
        self.turns_ms = FIRST_TURNS_MS  # from when a text comes to its turn, the mean by work
        self._hosts: dict[str, Collection[str]] = {}

    def heard(self, variant: str, hosts: Collection[str], *, places: int) -> None:
        """On which hosts a variant's replicas are, which are taken to be alike; and how many batches they run."""
        self._hosts[variant] = hosts
        count = max(1, len(set().union(*self._hosts.values())))
        self.cores = count * self._of_a_host if self.is_shared else places
        self.width = max(1, math.ceil(self.cores))
        self._load_s = self._inflow_s = math.nan

    def asked(self, work_ms: float, *, now_s: float) -> None:
        """Somebody asked for so much work, were it done as cheaply as here can be."""
        fade = math.exp((self._asked_s - now_s) / ASKED_OVER_S)
        self._asked_ms = self._asked_ms * fade + work_ms
        self._asked_s = now_s
        self._load_s = math.nan

    def came(self, work_ms: float, *, turn_ms: float, now_s: float) -> None:
        """A text that takes so much work waits from now on for its turn so much later."""
        fade = math.exp((self._came_s - now_s) / CAME_OVER_S)
        self._came_ms = self._came_ms * fade + work_ms
        self._came_s = now_s
        self._inflow_s = math.nan
        self.turns_ms += (turn_ms - self.turns_ms) * min(work_ms / TURNS_OVER_MS, 1.0)

    def inflow(self, now_s: float) -> float:
        """Work that is let in, as profiles have it / what all batches side by side can do."""
        if now_s != self._inflow_s:
            fade = math.exp((self._came_s - now_s) / CAME_OVER_S)
            self._inflow = self._came_ms * fade / (1000 * CAME_OVER_S * self.width)
            self._inflow_s = now_s
        return self._inflow

    def load(self, now_s: float) -> float:
        """Work asked for / what all cores can do."""
        if now_s != self._load_s:
            fade = math.exp((self._asked_s - now_s) / ASKED_OVER_S)
            asked_ms = self.pace * self._asked_ms * fade
            self._load = asked_ms / (1000 * ASKED_OVER_S * self.cores)
            self._load_s = now_s
        return self._load

    @property
    def pace(self) -> float:
        """How many times longer than its profile a batch takes while all cores are busy."""
        return self.contention.at(self.width)[0]

    def look(self, now_s: float) -> None:
        """Set the rent as of now. Where nothing runs, nobody is delayed."""
        self.rent = 0.0
        if self.busy:
            self.rent = RENT * self.pace * min(self.load(now_s), MOST_LOAD)
