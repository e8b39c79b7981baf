"""Ray's autoscaler brings nodes for replicas that wait: with its own provider of nodes that are processes of this host."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from serve_app.engines.measure import hardware_name
from serve_app.ports import free_port
from tests.e2e.harness import Server, deploy_when_up, start_head
from tests.rungs import change

pytestmark = pytest.mark.e2e

WITHIN_S = 120  # no test may depend on how busy the machine is; a node comes in 10 s or so
HEAD_CPUS, NODE_CPUS = 1, 4
PROVIDER = {
    "cluster_name": "growing",
    "max_workers": 1,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 60,
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {
            "resources": {"CPU": HEAD_CPUS},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 0,
        },
        "worker": {
            "resources": {"CPU": NODE_CPUS},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 1,
        },
    },
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}


@pytest.fixture
def server(
    tmp_path: Path,
    write_artifact: Callable[..., object],
    serve_environment: dict[str, str],
) -> Iterator[Server]:
    """Two variants for a head with one CPU; a text of two words is 40 ms of work to the cheapest, as promised for this host."""
    for variant, p1, cost_ms in (("fake-fp32", 1.0, 20), ("fake-int8", 0.985, 10)):
        write_artifact(tmp_path / "artifacts" / variant, p1=p1, cost_ms=cost_ms)
        change(tmp_path / "artifacts" / variant, profile={"hardware": hardware_name("cpu")})
    port, ray_port, host = free_port(), free_port(), "127.0.0.1"
    provider = {"type": "fake_multinode", "gcs_address": f"{host}:{ray_port}"}
    (tmp_path / "cluster.yaml").write_text(json.dumps(PROVIDER | {"provider": provider}))
    config = _serve_yaml(tmp_path, port)
    environment = serve_environment | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    server, dashboard_port = start_head(
        tmp_path,
        f"--node-ip-address={host}",
        f"--num-cpus={HEAD_CPUS}",
        f"--autoscaling-config={tmp_path / 'cluster.yaml'}",
        http_port=port,
        ray_port=ray_port,
        environment=environment,
    )
    try:
        deploy_when_up(config, dashboard_port, environment)
        yield server
    finally:
        server.kill()


def _serve_yaml(folder: Path, port: int) -> Path:
    args = {
        "artifacts": str(folder / "artifacts"),
        "variants": "fake-fp32,fake-int8",
        "cluster_cpus": HEAD_CPUS + NODE_CPUS,
        "cores": NODE_CPUS,
    }
    application = {
        "name": "embeddings",
        "route_prefix": "/",
        "import_path": "serve_app.app:build_app",
        "args": args,
    }
    # All nodes are this host, which has one such port.
    content = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [application],
    }
    config = folder / "serve.yaml"
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    return config


def _count(server: Server, name: str) -> int:
    found = 0
    for process in server.tree():
        with suppress(psutil.NoSuchProcess):  # some end meanwhile
            found += name in (process.cmdline() or [""])[0]
    return found


def test_replicas_bring_the_node_that_they_wait_for(server: Server) -> None:
    """A head of one CPU gets the node that the first replicas need, and a group grows onto it when asked for more."""
    server.wait_until_ready()
    assert _count(server, "/raylet") == 2
    latest_s = time.monotonic() + WITHIN_S
    with httpx.Client(base_url=server.url, timeout=60) as http:
        body = {"input": ["hello world"] * 64, "variant": "fake-int8", "latency_ms": 60_000}
        while _count(server, "ray::ServeReplica:embeddings:fake-int8") < 2:
            assert http.post("/v1/embeddings", json=body).status_code == httpx.codes.OK
            assert time.monotonic() < latest_s, f"one replica after {WITHIN_S} s"
            time.sleep(0.2)
