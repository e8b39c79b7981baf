"""CPU time of all processes that one started program brought along, from /proc.

A process belongs if it descends from the program, or carries the program's mark in its environment:
Ray's workers, its GCS and HAProxy inherit that, also those whose parent has gone. What has ended and
was waited for is in its parent's figures, so the sum only grows.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "EMBEDDING_BENCH_MARK"  # environment variable; its value is one program's own
PROC = Path("/proc")
# Fields of /proc/PID/stat behind the command's name, see proc(5).
PARENT, TIMES = 1, slice(11, 15)  # utime, stime, cutime, cstime


@dataclass(frozen=True, slots=True)
class Stat:
    """A process: its parent, and the CPU ticks of it and of those that it has waited for."""

    pid: int
    parent: int
    ticks: int


def parse_stat(text: str) -> Stat:
    """Read a line of /proc/PID/stat; the command's name may hold spaces and parentheses."""
    pid, _, rest = text.partition(" (")
    fields = rest.rpartition(") ")[2].split()
    return Stat(int(pid), int(fields[PARENT]), sum(map(int, fields[TIMES])))


def is_marked(environment: bytes, mark: str) -> bool:
    """Whether /proc/PID/environ holds the mark."""
    return f"{MARK}={mark}".encode() in environment.split(b"\0")


def belonging(stats: Iterable[Stat], *, root: int, marked: Collection[int]) -> list[Stat]:
    """Those of the program: the root, the marked, and all that descend from either."""
    known = {stat.pid: stat for stat in stats}
    inside = {root, *marked} & known.keys()
    grown = True
    while grown:
        more = {s.pid for s in known.values() if s.parent in inside} - inside
        inside |= more
        grown = bool(more)
    return [known[pid] for pid in sorted(inside)]


@dataclass(frozen=True, slots=True)
class Meter:
    """The processes of one program, now."""

    root: int
    mark: str

    def cpu_s(self) -> float:
        """CPU seconds, user and system, of all that ever belonged."""
        return sum(s.ticks for s in self._stats()) / os.sysconf("SC_CLK_TCK")

    def pids(self) -> list[int]:
        """Those that live."""
        return [s.pid for s in self._stats()]

    def _stats(self) -> list[Stat]:
        stats, marked = [], []
        for folder in PROC.iterdir():
            if not folder.name.isdecimal():
                continue
            with suppress(OSError):  # it has just ended
                stats.append(parse_stat((folder / "stat").read_text(encoding="latin-1")))
                if is_marked((folder / "environ").read_bytes(), self.mark):
                    marked.append(int(folder.name))
        return belonging(stats, root=self.root, marked=marked)
