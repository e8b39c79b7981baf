"""A server for the time of a load test: started where none runs, stopped again, and never instead of another."""

from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests.errors import NoServer
from loadtests.local_server import LOG, Wanted, serving
from loadtests.served import Server
from serve_app.ports import free_port
from tests.loadtests import fake_cluster
from tests.loadtests.fake_cluster import FakeCluster

ROOT = Path(__file__).parents[2]
# Stands for `python -m serve_app`: takes its flags, and answers until SIGTERM.
PROGRAM = """
import signal, sys, threading
sys.path.append({root!r})
from http.server import ThreadingHTTPServer
from tests.loadtests.fake_cluster import FakeCluster, _Handler
assert sys.argv[1:3] == ["--artifacts", "some-artifacts"], sys.argv
assert sys.argv[7:] == {more!r}, sys.argv
_Handler.cluster = FakeCluster()
server = ThreadingHTTPServer((sys.argv[4], int(sys.argv[6])), _Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
print("stopped as asked", flush=True)
"""
BUILD = "import sys; assert sys.argv[1:] == ['build', '--missing', '--out', 'some-artifacts']"
FAIL = "import sys; print('warming', flush=True); sys.exit('error: no artifacts')"

Program = Callable[[str, str], None]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Puts another program in the place of one of ours, for processes that are started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def place(name: str, source: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").touch()
        (folder / "__main__.py").write_text(source, encoding="utf-8")

    return place


def _free_url() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.mark.parametrize("variants", [None, "fake-fp32,fake-int8"])
def test_a_server_is_built_started_and_stopped(
    tmp_path: Path, program: Program, variants: str | None
) -> None:
    """Where nothing listens, what is missing is built, the server answers inside the block with the variants asked for, and ends after."""
    program("converters", BUILD)
    more = [] if variants is None else ["--variants", variants]
    program("serve_app", PROGRAM.format(root=str(ROOT), more=more))
    server, said = Server(_free_url()), []
    wanted = Wanted(Path("some-artifacts"), variants=variants)
    with serving(server, wanted=wanted, folder=tmp_path, say=said.append):
        assert [v.variant for v in server.variants()] == ["fake-fp32", "fake-int8"]
    assert said == [f"no server at {server.host}: starting one"]
    with pytest.raises(NoServer):
        server.check()
    assert (tmp_path / LOG).read_text(encoding="utf-8").endswith("stopped as asked\n")


def test_a_server_that_fails_to_start_is_one_line(tmp_path: Path, program: Program) -> None:
    """The last line of its log says why, and a build that fails ends it before."""
    program("converters", "")
    program("serve_app", FAIL)
    with (
        pytest.raises(NoServer, match="did not get ready: error: no artifacts"),
        serving(Server(_free_url()), wanted=Wanted(Path("x")), folder=tmp_path, say=print),
    ):
        pytest.fail("there is no server")
    (tmp_path / "converters" / "__main__.py").write_text(FAIL, encoding="utf-8")
    with (
        pytest.raises(NoServer, match="x could not be built"),
        serving(Server(_free_url()), wanted=Wanted(Path("x")), folder=tmp_path, say=print),
    ):
        pytest.fail("there is no server")


def test_a_server_that_runs_is_taken_as_it_is(tmp_path: Path) -> None:
    """Nothing is started beside it, and it still runs afterwards."""
    with fake_cluster.serving(FakeCluster()) as cluster:
        server = Server(cluster.url)
        with serving(server, wanted=Wanted(Path("x")), folder=tmp_path, say=pytest.fail):
            server.check()
        server.check()


def test_a_running_server_that_serves_others_is_told(tmp_path: Path) -> None:
    """Whoever asks for variants learns that they are not what is loaded; the same ones are no news."""
    for variants, lines in (("fake-int8, fake-fp32", 0), ("fake-int8", 1)):
        said: list[str] = []
        with fake_cluster.serving(FakeCluster()) as cluster:
            wanted = Wanted(Path("x"), variants=variants)
            with serving(Server(cluster.url), wanted=wanted, folder=tmp_path, say=said.append):
                pass
        assert len(said) == lines
        assert all("runs already, and serves fake-fp32, fake-int8" in line for line in said)


@pytest.mark.parametrize("trouble", ["a key", "not ready", "elsewhere", "no artifacts"])
def test_nothing_is_started_in_the_place_of_another(tmp_path: Path, trouble: str) -> None:
    """A server that refuses us or still starts, another machine, and no artifacts: told, not replaced."""
    cluster = FakeCluster(key="k" if trouble == "a key" else None, ready=trouble != "not ready")
    with fake_cluster.serving(cluster):
        url = cluster.url if trouble in ("a key", "not ready") else _free_url()
        url = "http://server.invalid:1" if trouble == "elsewhere" else url
        wanted = None if trouble == "no artifacts" else Wanted(Path("x"))
        with (
            pytest.raises(NoServer),
            serving(Server(url), wanted=wanted, folder=tmp_path, say=pytest.fail),
        ):
            pytest.fail("it was let in")
