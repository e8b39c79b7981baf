"""The routing brain compiled: it decides as its sources do, and serves."""

import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from serve_app.compiled import compile_policy
from tests.e2e.harness import StartServer
from tests.sources import copy_sources

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="no C compiler"),
]
# Ten seconds of bursts on two cores, and what became of each request.
A_RUN = """
import hashlib
import serve_app.policy.brain as brain
from loadtests.cluster_model import Cluster, Setup
from loadtests.product_policy import BrainPolicy
from loadtests.sim_workload import assumed_pools, in_bursts, requests_at
from tests.loadtests.sim_machines import MACHINE

cluster = Cluster(MACHINE, BrainPolicy, seed=0, setup=Setup(routers=2))
fate = cluster.run(requests_at(in_bursts(200.0, 10.0, 0), assumed_pools(), seed=0))
told = f"{list(fate.outcomes)} {fate.variants} {fate.latencies_ms}"
print(brain.__file__.rpartition(".")[2], hashlib.sha256(told.encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources, and what was compiled from them."""
    tree = copy_sources(tmp_path_factory.mktemp("compiled"))
    compile_policy(tree / "serve_app" / "policy")
    return tree


def test_it_decides_as_its_sources_do(tree: Path, tmp_path: Path) -> None:
    """Every outcome and latency of a simulated overload is the same, to the last digit."""
    (kind, told), (compiled_kind, compiled_told) = map(_run, (copy_sources(tmp_path), tree))
    assert (kind, compiled_kind) == ("py", "so")
    assert compiled_told == told


def _run(tree: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", A_RUN], cwd=tree, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_it_serves(start_server: StartServer, tree: Path) -> None:
    """Whatever travels between Ray's processes arrives: a request is answered by the variant that was decided."""
    server = start_server("--calls", "handle", tree=tree)  # then replies are pickled, too
    asked = {"input": "hello", "quality": "fast"}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        told = client.post("/v1/embeddings", json=asked)
        assert told.status_code == 200, told.text
        decided = client.post("/v1/route", json=asked).json()
        assert told.json()["routing"]["variant"] == decided["variant"]
    server.stop()
