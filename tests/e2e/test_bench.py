"""The benchmark's client and meter on a real port: the bare server, which needs no Ray."""

from pathlib import Path

import pytest

from loadtests.bench.ours import bare
from loadtests.bench.rounds import Course
from loadtests.bench.samples import Cell, Failed, Measured, Pace, Standing
from loadtests.bench.served import ServerSubject
from loadtests.bench.tree_cpu import Meter
from loadtests.bench.workloads import Workload
from serve_app.registry import load_ladder

pytestmark = pytest.mark.e2e


def test_a_server_is_started_loaded_and_ended(
    fake_artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request is answered with its vectors, its CPU is seen, and no process of it is left."""
    marks: list[str] = []
    original = Meter.__init__

    def noted(meter: Meter, root: int, mark: str) -> None:
        original(meter, root, mark)
        marks.append(mark)

    monkeypatch.setattr(Meter, "__init__", noted)
    requests = (("hello world", "the query"), ("a text", "hello"))
    course = Course(
        cells=(Cell("mixed32", 2),),
        workloads={"mixed32": Workload("mixed32", requests)},
        rounds=1,
        pace=Pace(seconds=0.5, warm_s=0.1, idle_s=0),
        folder=tmp_path,
        tell=print,
    )
    subject = bare(fake_artifacts, load_ladder(fake_artifacts))
    standing, measured = course.run([subject])
    assert isinstance(standing, Standing)
    assert isinstance(measured, Measured)
    sample = measured.sample
    assert sample.failures is None
    assert sample.texts == 2 * sample.requests > 0
    assert sample.cpu_s > 0
    assert Meter(0, marks[0]).pids() == []


def test_a_server_that_does_not_start_is_told(tmp_path: Path) -> None:
    """The last line of its log is the reason, and the run goes on without it."""
    subject = ServerSubject(
        name="broken",
        command=lambda _: ["python3", "-c", "raise SystemExit('no such model')"],
        asks={},
        ready_path="/",
    )
    course = Course(
        cells=(),
        workloads={},
        rounds=2,
        pace=Pace(seconds=1, warm_s=0, idle_s=0),
        folder=tmp_path,
        tell=print,
    )
    assert list(course.run([subject])) == [
        Failed("broken", "the server did not get ready: no such model")
    ]
