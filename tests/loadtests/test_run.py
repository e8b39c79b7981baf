"""A whole run against a server that is none, from the command line to its exit code."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.records import read_columns
from loadtests.run_folder import REQUESTS, About
from loadtests.sampling import read_samples
from loadtests.workload import NAMES
from tests.loadtests.fake_cluster import VARIANTS, FakeCluster, serving

# Not imported here: locust changes the threads of whoever imports it.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("locust") is None, reason="locust is not installed: nothing sends"
)
ROOT = Path(__file__).parents[2]
KEY = "a-secret-key"
PATIENCE_S = 90
# The quick matrix in seconds instead of minutes.
SHORT = """
import sys
from loadtests import __main__, phases
phases.PROFILES["quick"] = phases.Profile(
    warm_s=1, ramp_s=8, settled_s=2, trace_s=1)
sys.argv[0] = __main__.__file__
__main__.main()
"""


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    """A server of a known capacity."""
    with serving(FakeCluster()) as cluster:
        yield cluster


def _start(*words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SHORT, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, error


def _run(*words: str, **environment: str) -> tuple[int, str, str]:
    return _end(_start("run", *words, **environment))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run against a server that wants a key, refuses 25 ms, and long texts in 100 ms, with an objective out of its reach."""
    out = tmp_path_factory.mktemp("runs") / "run"
    slos = ("--slo", "errors<=0", "--slo", "throughput>=100000")
    with serving(FakeCluster(key=KEY, infeasible_ms=25, ms_a_token=1.0)) as cluster:
        code, said, error = _run(
            *("--host", cluster.url, "--out", str(out), *slos), LOADTEST_API_KEY=KEY
        )
    assert code == 1, error
    return out, said, error


def test_a_run_goes_through_its_matrix(ran: tuple[Path, str, str]) -> None:
    """Warm-up, ramps, then routed and pinned with the same requests, then bursts; a page at the end."""
    out, said, _ = ran
    names = [p.name for p in About.read(out).phases]
    others = [name for name in names if not name.startswith("ramp")]
    assert names[:2] == ["warm-up", "ramp"]
    assert others[:-1] == ["warm-up", "routed-70", *(f"pinned-{v}-70" for v in VARIANTS)]
    assert others[-1] in {"trace", "bursty"}
    rows = read_columns(out / REQUESTS)
    assert set(rows.variant[rows.phase == "pinned-fake-int8-70"]) - {""} == {"fake-int8"}
    routed, one = (rows.where(rows.phase == p) for p in ("routed-70", "pinned-fake-fp32-70"))
    assert sorted(routed.hint_class) == sorted(one.hint_class)
    assert said.splitlines()[-1] == str(out / "index.html")
    assert (out / "index.html").exists()


def test_a_missed_objective_is_listed_and_sets_the_exit_code(ran: tuple[Path, str, str]) -> None:
    """Each objective is a line with its value; the exit code is 1, which `ran` saw."""
    _, said, _ = ran
    assert "met: errors<=0 in all phases: 0" in said
    assert "MISSED: throughput>=100000 in routed-70: " in said


def test_the_ramp_finds_the_capacity(ran: tuple[Path, str, str]) -> None:
    """The knee is named on standard error and in the report, near what the server can do."""
    out, _, error = ran
    knee = json.loads((out / "report.json").read_text(encoding="utf-8"))["knee"]
    assert f"{knee['load_per_s']:.0f} requests/s" in error.split("knee: ")[1].splitlines()[0]
    assert 25 < knee["load_per_s"] < 100
    kinds = {s.what for s in read_samples(out / "samples.csv")}
    assert kinds >= {"replicas", "queued_tokens", "server_rss_bytes", "client_cpu"}


def test_what_an_idle_server_refuses_is_infeasible(ran: tuple[Path, str, str]) -> None:
    """What /v1/route refuses before the load is known of each request, and out of the share within budget."""
    out, _, _ = ran
    about, rows = About.read(out), read_columns(out / REQUESTS)
    assert about.feasible["tight"] == 0.0
    assert 0.0 < about.feasible["interactive"] < 1.0
    assert about.feasible["relaxed"] == 1.0
    assert 60 < about.token_limits["interactive"] <= 100
    flags = {name: set(rows.feasible[rows.hint_class == name]) for name in NAMES}
    assert flags.pop("tight") == {0.0}
    assert flags.pop("interactive") == {0.0, 1.0}
    assert set.union(*flags.values()) == {1.0}
    settled = json.loads((out / "report.json").read_text(encoding="utf-8"))["phases"]["routed-70"]
    assert settled["rejected"] > 0
    assert settled["within_budget"] > 0.5


def test_no_key_is_kept(ran: tuple[Path, str, str]) -> None:
    """The API key is in no file of the run, and what its parts left behind is cleared away."""
    out, _, _ = ran
    for file in out.iterdir():
        assert KEY.encode() not in file.read_bytes(), file
        assert not file.name.endswith(".cpu.json")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_reports_what_ran(
    cluster: FakeCluster, tmp_path: Path, number: signal.Signals
) -> None:
    """Interrupted in the ramp: exit code 130, a report of the ramp so far, and no process left."""
    out = tmp_path / "run"
    process = _start("run", "--host", cluster.url, "--out", str(out))
    latest_s = time.monotonic() + PATIENCE_S
    while not _has(out / REQUESTS, "\nramp,") and time.monotonic() < latest_s:
        time.sleep(0.1)
    process.send_signal(number)
    code, _, error = _end(process)
    assert code == 130, error
    assert "interrupted: reporting what ran" in error
    about = About.read(out)
    assert about.interrupted
    assert [p.name for p in about.phases] == ["warm-up", "ramp"]
    assert "The run was interrupted" in (out / "index.html").read_text(encoding="utf-8")


def _has(file: Path, text: str) -> bool:
    return file.exists() and text in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--host", "http://127.0.0.1:9"), "error: --host=http://127.0.0.1:9: "),
        (("--host", "nonsense"), "error: --host=nonsense: not a URL"),
        (("--slo", "speed>=1"), "error: --slo=speed>=1: no metric speed"),
        (("--trace", "missing.csv"), "error: --trace=missing.csv: no such file"),
        (("--texts", "missing.txt"), "error: --texts=missing.txt: "),
        (("--mix", "nobody=1"), "error: --mix=nobody=1: "),
        (("--variants", "a,b"), "error: --variants=a,b: what is served is chosen with --serve"),
    ],
)
def test_a_wrong_option_is_one_line(
    cluster: FakeCluster, tmp_path: Path, words: tuple[str, ...], why: str
) -> None:
    """It names the option and its value, exit code 2, and leaves no half of a run."""
    host = () if "--host" in words else ("--host", cluster.url)
    code, said, error = _run(*host, "--out", str(tmp_path / "run"), *words)
    assert (code, said) == (2, "")
    assert error.startswith(why)
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / REQUESTS).exists()


def test_a_server_that_lets_us_not_in_is_one_line(cluster: FakeCluster, tmp_path: Path) -> None:
    """A 401 and a server that still starts are told before any load."""
    cluster.key = "another"
    code, _, error = _run("--host", cluster.url, "--out", str(tmp_path / "a"))
    assert (code, error.count("\n")) == (2, 1)
    assert "401" in error
    assert "LOADTEST_API_KEY" in error
    cluster.key, cluster.ready = None, False
    code, _, error = _run("--host", cluster.url, "--out", str(tmp_path / "b"))
    assert (code, error.count("\n")) == (2, 1)
    assert "not ready" in error
    assert cluster.pins == []


def test_a_run_is_never_written_over(cluster: FakeCluster, tmp_path: Path) -> None:
    """A folder that holds a run is refused by name."""
    (tmp_path / REQUESTS).write_text("rows", encoding="utf-8")
    code, _, error = _run("--host", cluster.url, "--out", str(tmp_path))
    assert code == 2
    assert f"error: --out={tmp_path}: a run is there already" in error
    assert (tmp_path / REQUESTS).read_text(encoding="utf-8") == "rows"
