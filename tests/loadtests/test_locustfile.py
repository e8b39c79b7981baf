"""`locust -f loadtests/locustfile.py` as Locust's users run it, against a server that a test controls."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("locust", reason="locust is not installed: no load can be sent")

from loadtests.records import ClientCost, read_columns
from serve_app.ports import free_port
from tests.loadtests.fake_server import FakeServer, Reply, running

REPOSITORY = Path(__file__).parents[2]
LOCUSTFILE = REPOSITORY / "loadtests" / "locustfile.py"
PATIENCE_S = 60


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with running() as server:
        yield server


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--only-summary", *words]


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("LOADTEST_", "LOCUST_"))}


def start(*words: str) -> subprocess.Popen[str]:
    """Locust with signals as a terminal's programs have them: a shell's background jobs ignore Ctrl-C."""
    return subprocess.Popen(
        command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )


def run(*words: str) -> tuple[int, str, str]:
    process = start(*words)
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def open_loop(fake: FakeServer, record: Path, given: str, *words: str) -> tuple[int, str, str]:
    where = ("--headless", "--host", fake.url, "--record", str(record))
    return run(*where, "--arrivals", given, *words)


def table(prefix: Path) -> dict[str, dict[str, str]]:
    """Locust's own table, by name."""
    with prefix.with_name(f"{prefix.name}_stats.csv").open() as file:
        return {row["Name"]: row for row in csv.DictReader(file)}


def test_users_and_run_time_work_as_ever(fake: FakeServer, tmp_path: Path) -> None:
    """--users and --run-time hold; each request is a row with its hint's class and its answer."""
    record = tmp_path / "rows.csv"
    code, _, err = run(
        *("--headless", "--host", fake.url, "--record", str(record)),
        *("--users", "6", "--spawn-rate", "6", "--run-time", "2s"),
    )
    assert code == 0, err
    rows = read_columns(record)
    assert len(rows) > 10
    assert set(rows.status) == {200}
    assert set(rows.variant) <= {"onnx-fp32", "onnx-int8"}
    assert np.ptp(rows.intended_s) < 5
    hints = Counter(str(body.get("latency_ms") or body.get("quality")) for body in fake.asked)
    assert {"25.0", "100.0"} <= set(hints)


def test_arrivals_are_sent_when_they_are_due(fake: FakeServer, tmp_path: Path) -> None:
    """Open loop: about rate times duration requests, over few connections, and the end by itself."""
    record = tmp_path / "rows.csv"
    code, _, err = open_loop(fake, record, "constant:rate=60,duration=3", "--seed", "5")
    assert code == 0, err
    rows = read_columns(record)
    assert len(rows) == pytest.approx(180, rel=0.25)
    assert np.ptp(rows.intended_s) <= 3
    assert (rows.sent_s >= rows.intended_s - 1e-3).all()
    np.testing.assert_allclose(
        rows.latency_ms, (rows.finished_s - rows.intended_s) * 1000, atol=0.01
    )
    assert fake.connections < len(rows) / 2
    cost = ClientCost.read(record)
    assert cost is not None
    assert cost.cpu_s > 0
    assert cost.dropped == 0


def test_a_stalled_server_cannot_hide(fake: FakeServer, tmp_path: Path) -> None:
    """Requests that were due while the server stood still count from when they were due."""
    record = tmp_path / "rows.csv"

    def stall() -> None:
        while len(fake.asked) < 30:
            time.sleep(0.01)
        with fake.stalled:
            time.sleep(1.0)

    stalling = threading.Thread(target=stall)
    stalling.start()
    code, _, err = open_loop(fake, record, "constant:rate=50,duration=3")
    stalling.join()
    assert code == 0, err
    slow = np.sort(read_columns(record).latency_ms)[::-1]
    # Fifty were due in that second: waiting clients would have sent a handful.
    assert (slow > 100).sum() > 25
    assert slow[0] == pytest.approx(1000, rel=0.3)


def test_locusts_tables_tell_variants_budgets_and_refusals(
    fake: FakeServer, tmp_path: Path
) -> None:
    """Lines of their own for variants, budgets and fidelity; 429 and 504 are no failures, a 500 is."""
    statuses = iter([429, 504, 500] * 1000)
    fake.reply = lambda body: Reply(
        status=next(statuses) if body.get("latency_ms") == 25 else 200, variant="onnx-int8"
    )
    prefix = tmp_path / "stats"
    code, _, err = open_loop(
        fake,
        tmp_path / "rows.csv",
        "constant:rate=60,duration=2",
        *("--mix", "tight=1,interactive=1", "--csv", str(prefix)),
    )
    assert code == 1, err  # as Locust has it: there were failures
    found = table(prefix)
    rows = read_columns(tmp_path / "rows.csv")
    tight = rows.hint_class == "tight"
    counted = {
        "tight": (rows.status == 500).sum(),
        "tight: 429 not admitted": (rows.status == 429).sum(),
        "tight: 504 expired": (rows.status == 504).sum(),
        "interactive": (~tight).sum(),
        "variant onnx-int8": (rows.status == 200).sum(),
        "budget 25 ms": tight.sum(),
        "budget 100 ms": (~tight).sum(),
    }
    assert {name: int(found[name]["Request Count"]) for name in counted} == counted
    assert int(found["budget 25 ms"]["Failure Count"]) == tight.sum()
    assert float(found["fidelity x 10000"]["Average Response Time"]) == pytest.approx(9971)
    total = found["Aggregated"]
    assert int(total["Request Count"]) == len(rows)
    assert int(total["Failure Count"]) == (rows.status == 500).sum()


def test_workers_share_the_arrivals(fake: FakeServer, tmp_path: Path) -> None:
    """A master and two workers send each arrival once, what one process would have sent."""
    record = tmp_path / "rows.csv"
    given = ("--arrivals", "constant:rate=40,duration=3", "--seed", "3")
    port = ("--master-port", str(free_port()))
    master = start(
        *("--master", "--headless", "--host", fake.url, "--expect-workers", "2", *given),
        *("--master-bind-port", port[1], "--master-bind-host", "127.0.0.1"),
    )
    workers = [
        start("--worker", "--master-host", "127.0.0.1", *port, "--record", str(record))
        for _ in range(2)
    ]
    try:
        for process in (master, *workers):
            _, err = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, err
    finally:
        for process in (master, *workers):
            process.kill()
    alone = tmp_path / "alone.csv"
    shared = Counter(str(body) for body in fake.asked)
    fake.asked.clear()
    assert open_loop(fake, alone, given[1], *given[2:])[0] == 0
    assert Counter(str(body) for body in fake.asked) == shared
    assert len(read_columns(record)) == len(read_columns(alone))
    assert len(list(tmp_path.glob("rows.csv.worker-*.cpu.json"))) == 2


def test_ctrl_c_keeps_what_was_sent(fake: FakeServer, tmp_path: Path) -> None:
    """Interrupted, the rows so far are there, and the cost beside them says what was cut off."""
    record = tmp_path / "rows.csv"
    process = start(
        *("--headless", "--host", fake.url, "--record", str(record)),
        *("--arrivals", "constant:rate=50,duration=300"),
    )
    while len(fake.asked) < 40 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    cost = ClientCost.read(record)
    assert cost is not None
    assert len(read_columns(record)) >= 40 - cost.dropped


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--arrivals", "trace:file=none.csv"], "the trace none.csv cannot be read"),
        (["--arrivals", "gauss"], "no arrivals are named 'gauss'"),
        (["--shape", "cube"], "--shape=cube: no such shape"),
        (["--users", "0"], "--users=0: at least one user is needed"),
        (["--mix", "fast=1"], "no class is named 'fast'"),
        (["--texts", "none.txt"], "--texts=none.txt: it cannot be read"),
        (["--seed", "x"], "--seed=x: not a number"),
        (["--record", "/"], "cannot be written"),
        (["--host", "http://127.0.0.1:9"], "nothing answers there"),
        (["--host", "ftp://x"], "not a URL"),
    ],
)
def test_bad_input_is_one_line(fake: FakeServer, words: list[str], told: str) -> None:
    """What cannot be run is told in one line with the option and the value, exit code 2."""
    code, _, err = run("--headless", "--host", fake.url, "--run-time", "1s", *words)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert told in line
    assert "Traceback" not in err
    assert code == 2


def test_a_server_that_wants_a_key_is_told(fake: FakeServer) -> None:
    """401 is one line that says how to give a key, which then lets the load in."""
    fake.key = "open sesame"
    code, _, err = run("--headless", "--host", fake.url, "--run-time", "1s")
    assert code == 2
    assert "wants a key: set LOADTEST_API_KEY" in err
    code, _, err = run("--headless", "--host", fake.url, "--run-time", "1s", "--api-key", fake.key)
    assert code == 0, err
    assert fake.asked


def test_a_shape_moves_the_users(fake: FakeServer, tmp_path: Path) -> None:
    """--shape ends the run by itself, and asks for more as its ramp rises."""
    record = tmp_path / "rows.csv"
    code, _, err = run(
        *("--headless", "--host", fake.url, "--record", str(record)),
        *("--shape", "ramp", "--users", "12", "--run-time", "5s"),
    )
    assert code == 0, err
    sent = read_columns(record).sent_s
    middle = (sent.min() + sent.max()) / 2
    assert (sent > middle).sum() > 1.5 * (sent <= middle).sum()
