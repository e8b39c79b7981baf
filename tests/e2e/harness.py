"""A server as a process: its address, its log, its process tree."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

READY_WITHIN_S = 180
STOPPED_WITHIN_S = 60


@dataclass
class Server:
    """A running server, its address and its processes."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def replica_pids(self, variant: str) -> list[int]:
        name = f"ray::ServeReplica:embeddings:{variant}"
        pids = [p.pid for p in self.tree() if name in p.cmdline()[0]]
        assert pids, f"no replica of {variant}"
        return pids

    def wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline_s:
            if self.process.poll() is not None:
                pytest.fail(f"the server ended at start:\n{self.log.read_text()}")
            try:
                if httpx.get(f"{self.url}/ready").status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        pytest.fail(f"not ready within {READY_WITHIN_S} s:\n{self.log.read_text()}")

    def stop(self, number: signal.Signals = signal.SIGINT) -> list[psutil.Process]:
        """Stop it; returns the processes that outlive it."""
        tree = self.tree()
        if number == signal.SIGINT:  # as a terminal does: to the whole process group
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        self.process.wait(STOPPED_WITHIN_S)
        _, there = psutil.wait_procs(tree, timeout=10)
        alive = [p for p in there if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        for process in alive:
            process.kill()
        return alive


StartServer = Callable[..., Server]
