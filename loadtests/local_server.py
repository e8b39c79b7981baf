"""A server for the time of a load test, where none runs: builds what is missing, serves, stops it again."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from loadtests.errors import NoServer
from loadtests.programs import running
from loadtests.sampling import LOCAL
from loadtests.served import Server

READY_WITHIN_S = 300.0
LOG = "server.log"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to serve where nothing answers."""

    artifacts: Path
    variants: str | None = None  # by name, with commas between; None: the ladder


@contextmanager
def serving(server: Server, *, wanted: Wanted | None, folder: Path, say: Say) -> Iterator[None]:
    """See to it that a server answers, and stop it afterwards if it was started here.

    Args:
        server: where it answers.
        wanted: what to serve if nothing answers; None: nothing is started.
        folder: for its log.
        say: tells a line.

    Raises:
        NoServer: nothing answers, and nothing could be started.
    """
    try:
        server.check()
    except NoServer:
        if wanted is None or not _free(server):
            raise
    else:
        if wanted is not None and wanted.variants is not None:
            _warn_of_others(server, wanted.variants, say)
        yield
        return
    build_missing(wanted.artifacts)
    say(f"no server at {server.host}: starting one")
    with _started(server, wanted, log=folder / LOG):
        yield


def _warn_of_others(server: Server, variants: str, say: Say) -> None:
    """Tell of a server that was running already and serves something else than was wanted."""
    served = [v.variant for v in server.variants()]
    if set(served) != {name.strip() for name in variants.split(",")}:
        say(f"--variants={variants}: {server.host} runs already, and serves {', '.join(served)}")


def _free(server: Server) -> bool:
    """Whether a local port is simply not taken: whoever refuses us there is not to be replaced."""
    url = urlsplit(server.host)
    if url.hostname not in LOCAL:
        return False
    with socket.socket(socket.AF_INET6 if ":" in url.hostname else socket.AF_INET) as probe:
        return probe.connect_ex((url.hostname, url.port or 80)) != 0


def build_missing(artifacts: Path) -> None:
    """Build what is not there, as `make serve` does; raises NoServer."""
    command = [sys.executable, "-m", "converters", "build", "--missing", "--out", str(artifacts)]
    with subprocess.Popen(command, start_new_session=True) as build:  # noqa: S603
        try:
            build.wait()
        except KeyboardInterrupt:
            build.send_signal(signal.SIGTERM)  # it keeps what it has finished, and clears the rest
            build.wait()
            raise
    if build.returncode:
        raise NoServer(f"no server runs, and {artifacts} could not be built")


@contextmanager
def _started(server: Server, wanted: Wanted, *, log: Path) -> Iterator[None]:
    url = urlsplit(server.host)
    command = [sys.executable, "-m", "serve_app", "--artifacts", str(wanted.artifacts)]
    command += ["--host", str(url.hostname), "--port", str(url.port or 80)]
    if wanted.variants is not None:
        command += ["--variants", wanted.variants]
    with running(command, server.check, log=log, within_s=READY_WITHIN_S):
        yield
