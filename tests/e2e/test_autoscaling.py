"""A variant may do without replicas: it starts when wanted, and stops when nobody wants it."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from serve_app.ports import free_port
from tests.e2e.harness import Server

pytestmark = pytest.mark.e2e

WITHIN_S = 90  # no test may depend on how busy the machine is; mostly it takes 3 s up, 25 s down
PATIENT_MS = 60_000


@pytest.fixture
def server(tmp_path: Path, write_artifact: Callable[..., object]) -> Iterator[Server]:
    """Two variants that cost nothing; the closer one starts with no replica."""
    write_artifact(tmp_path / "artifacts" / "fake-fp32", p1=1.0, cost_ms=0.2)
    write_artifact(tmp_path / "artifacts" / "fake-int8", p1=0.985, cost_ms=0.1)
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-m", "serve_app", "--artifacts", str(tmp_path / "artifacts")]
    command += ["--port", str(port), "--variants", "fake-fp32,fake-int8", "--num-cpus", "2"]
    command += ["--min-replicas", "0", "--scale-down-s", "2"]
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stderr=stream, stdout=stream, text=True, start_new_session=True
        )
    started = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        started.wait_until_ready()
        yield started
    finally:
        if process.poll() is None:
            started.stop()


def replicas(http: httpx.Client) -> dict[str, int]:
    return {v["variant"]: v["replicas"] for v in http.get("/v1/variants").json()["variants"]}


def wait_for(http: httpx.Client, *, closer: int) -> None:
    latest_s = time.monotonic() + WITHIN_S
    while replicas(http)["fake-fp32"] != closer:
        assert time.monotonic() < latest_s, f"{closer} replicas: not within {WITHIN_S} s"
        time.sleep(0.3)


def test_a_cold_variant_comes_when_wanted_and_goes_when_not(server: Server) -> None:
    """Never routed to while cold, a replica once demanded, an answer from it, none after silence."""
    with httpx.Client(base_url=server.url, timeout=60) as http:
        assert replicas(http) == {"fake-fp32": 0, "fake-int8": 1}
        body = {"input": "hello world", "latency_ms": PATIENT_MS}
        first = http.post("/v1/embeddings", json=body)
        assert first.status_code == httpx.codes.OK, first.text
        assert first.json()["routing"]["variant"] == "fake-int8"
        assert "no replica is up yet" in http.post("/v1/route", json=body).text
        wait_for(http, closer=1)
        second = http.post("/v1/embeddings", json=body)
        assert second.json()["routing"]["variant"] == "fake-fp32"
        wait_for(http, closer=0)
        assert http.get("/ready").status_code == httpx.codes.OK
        third = http.post("/v1/embeddings", json=body)
        assert third.json()["routing"]["variant"] == "fake-int8"
