"""A server as a process: its address, its log, its process tree; and `serve deploy` onto a cluster that starts."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

READY_WITHIN_S = 180
STOPPED_WITHIN_S = 60
DEPLOY_TRIES = 30


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

    def kill(self) -> None:
        """End a cluster that nobody asks how it ends: by itself Ray takes its time."""
        tree = [psutil.Process(self.process.pid), *self.tree()]
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(STOPPED_WITHIN_S)
        psutil.wait_procs(tree, timeout=STOPPED_WITHIN_S)


StartServer = Callable[..., Server]


def deploy_when_up(
    serve: Path, config: Path, dashboard_port: int, environment: dict[str, str]
) -> None:
    """Ask again until Ray takes it.

    Args:
        serve: the command.
        config: for it.
        dashboard_port: of the cluster on this host.
        environment: of the cluster.
    """
    command = [str(serve), "deploy", str(config), "-a", f"http://127.0.0.1:{dashboard_port}"]
    environment = environment | {"RAY_AUTH_MODE": "token"}  # `ray start` asks for one by default
    for _ in range(DEPLOY_TRIES):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(1)
    pytest.fail(f"serve deploy: {done.stderr}")
