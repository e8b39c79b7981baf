"""What the server does while it is under load, once a second.

Replicas and queues come from its own answers; memory and processor time of its process tree where it
runs on this machine; and the client's processor time.
"""

from __future__ import annotations

import csv
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import psutil

from loadtests.errors import LoadTestError
from loadtests.served import Server

EVERY_S = 1.0
HEADER = ("time_s", "what", "name", "value")
LOCAL = ("127.0.0.1", "localhost", "::1")
PROGRAMS = ("serve_app", "raylet")


@dataclass(frozen=True, slots=True)
class Sample:
    """One value at one time; `name` is the variant of `replicas` and `queued_tokens`."""

    time_s: float
    what: str
    name: str
    value: float


def server_process(host: str) -> psutil.Process | None:
    """The root of the process tree that listens at a local host's port; None where it cannot be known."""
    url = urlsplit(host)
    if url.hostname not in LOCAL:
        return None
    port = url.port or (443 if url.scheme == "https" else 80)
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN
            if listens and connection.laddr.port == port and connection.pid is not None:
                return _root(psutil.Process(connection.pid))
    return None


def _root(listener: psutil.Process) -> psutil.Process:
    """The outermost process of ours above the listener, which may be only a proxy."""
    root = listener
    for parent in listener.parents():
        with suppress(psutil.Error):
            words = [Path(word).name for word in parent.cmdline()]
            if any(word in PROGRAMS for word in words):
                root = parent
    return root


class Tree:
    """Memory and processor time of a process and all below it, ever."""

    def __init__(self, root: psutil.Process) -> None:
        self._root = root
        self._cpu_s: dict[int, float] = {}
        self._read_at_s: float | None = None

    def read(self) -> tuple[int, float | None]:
        """Resident bytes, and the cores used since the last reading (None the first time)."""
        resident, used_s = 0, 0.0
        for process in self._processes():
            with suppress(psutil.Error):
                with process.oneshot():
                    times = process.cpu_times()
                    resident += process.memory_info().rss
                spent_s = times.user + times.system
                used_s += spent_s - self._cpu_s.get(process.pid, 0.0)
                self._cpu_s[process.pid] = spent_s
        now_s, before_s = time.monotonic(), self._read_at_s
        self._read_at_s = now_s
        return resident, None if before_s is None else used_s / max(now_s - before_s, 1e-3)

    def _processes(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            return [self._root, *self._root.children(recursive=True)]
        return []


class Sampler:
    """Takes samples in a thread of its own, and writes each at once: what was taken outlives a crash."""

    def __init__(self, server: Server, file: Path, *, root: psutil.Process | None) -> None:
        self._server = server
        self._tree = None if root is None else Tree(root)
        self._client: Tree | None = None
        self._file = file
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sampler", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def watch_client(self, pid: int | None) -> None:
        """Sample this client from now on; None for no client."""
        self._client = None
        with suppress(psutil.Error):
            self._client = None if pid is None else Tree(psutil.Process(pid))

    def _work(self) -> None:
        with self._file.open("a", newline="", encoding="utf-8", buffering=1) as opened:
            lines = csv.writer(opened, lineterminator="\n")
            lines.writerow(HEADER)
            while not self._done.wait(EVERY_S):
                lines.writerows(
                    (f"{s.time_s:.3f}", s.what, s.name, f"{s.value:g}") for s in self._take()
                )

    def _take(self) -> Iterator[Sample]:
        now_s = time.time()
        with suppress(LoadTestError):  # a server too busy to tell leaves a gap
            for v in self._server.variants():
                yield Sample(now_s, "replicas", v.variant, v.replicas)
                yield Sample(now_s, "queued_tokens", v.variant, v.queued_tokens)
        if self._tree is not None:
            resident, cores = self._tree.read()
            if resident:
                yield Sample(now_s, "server_rss_bytes", "", resident)
            if cores is not None:
                yield Sample(now_s, "server_cpu", "", max(cores, 0.0))
        if (client := self._client) is not None:
            cores = client.read()[1]
            if cores is not None:
                yield Sample(now_s, "client_cpu", "", max(cores, 0.0))


def read_samples(file: Path) -> list[Sample]:
    """All samples of a run; a half-written last line is left out."""
    if not file.exists():
        return []
    samples = []
    with file.open(newline="", encoding="utf-8") as opened:
        for line in csv.DictReader(opened):
            with suppress(TypeError, ValueError):
                samples.append(
                    Sample(float(line["time_s"]), line["what"], line["name"], float(line["value"]))
                )
    return samples


def growth(samples: Sequence[Sample], *, from_s: float, to_s: float, warm_s: float) -> float | None:
    """Growth of the server's memory over a phase after its warm-up: first against last quarter.

    Medians, so that a passing spike is no growth. None with fewer than 8 samples.
    """
    values = [
        s.value
        for s in samples
        if s.what == "server_rss_bytes" and from_s + warm_s <= s.time_s <= to_s
    ]
    quarter = len(values) // 4
    if quarter < 2:  # noqa: PLR2004
        return None
    first, last = sorted(values[:quarter]), sorted(values[-quarter:])
    return last[quarter // 2] / first[quarter // 2] - 1
