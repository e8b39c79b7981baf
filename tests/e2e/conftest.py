"""A real server on a free port, started and stopped as a user would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serve_app.ports import free_port
from tests.e2e.harness import Server, StartServer

PATIENT_MS = 60_000  # no test may depend on how busy the machine is


@pytest.fixture(scope="session")
def start_server(
    real_artifacts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartServer]:
    """Start servers with extra flags, of other sources if need be; whatever a test leaves running is stopped at the end."""
    servers: list[Server] = []

    def start(*flags: str, tree: Path | None = None) -> Server:
        port = free_port()
        log = tmp_path_factory.mktemp("server") / "log"
        command = [sys.executable, "-m", "serve_app", "--artifacts", str(real_artifacts)]
        command += ["--default-latency-ms", str(PATIENT_MS)]
        with log.open("w") as stream:
            process = subprocess.Popen(
                [*command, "--port", str(port), *flags],
                stderr=stream,
                stdout=stream,
                text=True,
                start_new_session=True,
                cwd=tree,
                env=os.environ if tree is None else os.environ | {"PYTHONPATH": str(tree)},
            )
        servers.append(Server(f"http://127.0.0.1:{port}", process, log))
        servers[-1].wait_until_ready()
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="session")
def server(start_server: StartServer) -> Server:
    """The server that most tests share: the measured ladder."""
    return start_server()


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def serve_environment() -> dict[str, str]:
    """What `python -m serve_app env` tells people to export, with free ports for the test."""
    shell = subprocess.run(
        [sys.executable, "-m", "serve_app", "env"], check=True, capture_output=True, text=True
    ).stdout
    settings = dict(re.findall(r"^export (\w+)='?(.*?)'?$", shell, re.MULTILINE))
    folder = f"/tmp/haproxy-test-{os.getpid()}"  # noqa: S108 (a socket's path must be short)
    return (
        os.environ
        | settings
        | {
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
    )
