"""A server as a process: its address, its log, its process tree; and `serve deploy` onto a cluster that starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from serve_app.ports import free_port

COMMANDS = Path(sys.executable).parent
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


def start_head(
    folder: Path, *flags: str, http_port: int, ray_port: int, environment: dict[str, str]
) -> tuple[Server, int]:
    """`ray start --head` on this host, for an application that will listen on a port.

    Returns:
        The server that there will be, and the dashboard's port.
    """
    dashboard_port = free_port()
    command = [str(COMMANDS / "ray"), "start", "--head", "--block", f"--port={ray_port}"]
    command += [f"--dashboard-port={dashboard_port}", "--disable-usage-stats", *flags]
    command += ["--temp-dir", f"/tmp/ray-test-{ray_port}"]  # noqa: S108 (sockets: a short path)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True)
    return Server(f"http://127.0.0.1:{http_port}", process, folder / "log"), dashboard_port


def deploy_when_up(config: Path, dashboard_port: int, environment: dict[str, str]) -> None:
    """`serve deploy`; ask again until Ray takes it.

    Args:
        config: for it.
        dashboard_port: of the cluster on this host.
        environment: of the cluster.
    """
    command = [
        str(COMMANDS / "serve"),
        "deploy",
        str(config),
        "-a",
        f"http://127.0.0.1:{dashboard_port}",
    ]
    environment = environment | {"RAY_AUTH_MODE": "token"}  # `ray start` asks for one by default
    for _ in range(DEPLOY_TRIES):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(1)
    pytest.fail(f"serve deploy: {done.stderr}")
