"""Whoever reports a load needs no Locust, and nobody who loads a server needs the server's runtimes."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOADED = """
import json, sys
for name in sys.argv[1:]:
    __import__(name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
REPORTING = ("__main__", "run", "report", "compare", "findings", "local_server", "slo", "phases")


def test_running_and_reporting_load_neither_locust_nor_a_model_runtime() -> None:
    """Locust is a process of its own: it changes the threads and sockets of whoever imports it."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *(f"loadtests.{name}" for name in REPORTING)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(json.loads(done.stdout))
    assert {"loadtests", "matplotlib", "psutil"} <= loaded
    assert loaded & {"locust", "gevent", "ray", "torch", "onnxruntime", "openvino"} == set()
