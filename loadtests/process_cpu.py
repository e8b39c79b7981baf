"""CPU time of a server's processes, by what they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import psutil

REPLICA, ROUTER = "ray::ServeReplica:", "router"


def cpu_s(root: psutil.Process) -> dict[int, tuple[str, float]]:
    """CPU seconds of the server's processes so far, by process, with its kind."""
    found = {}
    for process in root.children(recursive=True):
        try:
            words, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        found[process.pid] = (kind_of(words), times.user + times.system)
    return found


def by_kind(
    before: Mapping[int, tuple[str, float]], after: Mapping[int, tuple[str, float]]
) -> dict[str, float]:
    """CPU seconds between two looks, of each kind of process."""
    spent: dict[str, float] = defaultdict(float)
    for pid, (kind, spent_s) in after.items():
        spent[kind] += spent_s - before.get(pid, (kind, spent_s))[1]
    return spent


def kind_of(words: str) -> str:
    """Of a process, by its title: Ray names workers by actor and, while one runs, by method."""
    if words.startswith(REPLICA):
        deployment = words.split(maxsplit=1)[0].rpartition(":")[2].partition(".")[0]
        return "router" if deployment == ROUTER else "replica"
    return "haproxy" if "/haproxy" in words else "other"
