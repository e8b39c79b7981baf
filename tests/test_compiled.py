"""The routing brain compiled: it decides as its sources do, and never as they once did."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app import compiled
from serve_app.compiled import OF_SOURCES, compile_policy, interpret_policy, is_compiled
from serve_app.errors import SetupError

ROOT = Path(compiled.__file__).parents[1]
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


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """The sources, in a tree of their own."""
    for package in ("serve_app", "loadtests", "tests"):
        ignored = shutil.ignore_patterns("*.so", "*.pyd", OF_SOURCES, "results", "__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    return tmp_path / "serve_app" / "policy"


def test_sources_changed_since_are_refused(policy: Path) -> None:
    """By a message that says what to do; what is not compiled, or not changed, is fine."""
    compiled.require_current(policy)
    (policy / "turns.so").touch()
    (policy / OF_SOURCES).write_text(compiled._digest(policy))
    compiled.require_current(policy)
    (policy / "turns.py").write_text("AGES = 1")
    with pytest.raises(SetupError, match="python -m serve_app compile"):
        compiled.require_current(policy)
    interpret_policy(policy)
    compiled.require_current(policy)
    assert not is_compiled(policy)
    assert not list(policy.glob("*.so"))


def test_a_compiler_that_fails_is_told(policy: Path) -> None:
    """Its last lines are in the message, and nothing half compiled is left to run."""
    (policy / "turns.py").write_text("def broken(")
    with pytest.raises(SetupError, match="takes mypy, setuptools and a C compiler") as caught:
        compile_policy(policy)
    assert "turns.py" in str(caught.value)
    assert not is_compiled(policy)


@pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="no C compiler here")
def test_it_decides_as_its_sources_do(policy: Path) -> None:
    """Every outcome and latency of a simulated overload is the same, to the last digit."""
    interpreted = _run(policy)
    compile_policy(policy)
    compiled_run = _run(policy)
    assert (interpreted[0], compiled_run[0]) == ("py", "so")
    assert compiled_run[1] == interpreted[1]


def _run(policy: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", A_RUN],
        cwd=policy.parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()
