"""Servers as subjects: started as programs, loaded by the client's own process, their CPU read around it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from loadtests.bench.client import HOST, Job, Result
from loadtests.bench.samples import Cell, Pace, Row, Sample, Standing
from loadtests.bench.tree_cpu import MARK, Meter
from loadtests.bench.workloads import Ask, Workload
from loadtests.errors import NoServer
from loadtests.programs import running
from serve_app.ports import free_port

PATH = "/v1/embeddings"
POLL_S = 0.1
SETTLE_S = 5.0  # between ready and the look at an idle cluster: Ray still starts spare workers
CLIENT = (sys.executable, "-m", "loadtests.bench.client")
ANSWER_WITHIN_S = 60.0
NO_ROOT = 0  # no process has this number: by the mark alone

Words = Callable[[int], Sequence[str]]  # port → a command's words


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSubject:
    """A server to start, and how each row asks it."""

    name: str
    command: Words
    asks: Mapping[Row, Ask]
    path: str = PATH
    ready_path: str | None = None  # answers 200 when it is ready; None: when it embeds
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] | None = None  # before its start, timed apart
    looks_idle: bool = False  # whether its CPU without requests is of interest
    within_s: float = 300.0

    def plan(self, cells: Sequence[Cell]) -> Sequence[tuple[Cell, Sequence[Row]]]:
        return [(cell, tuple(self.asks)) for cell in cells]

    @contextmanager
    def started(self, folder: Path) -> Iterator[StartedServer]:
        prepared_s = self._prepared_s()
        port, mark = free_port(), uuid.uuid4().hex
        log = folder / f"{self.name.replace(' ', '-')}.log"
        try:
            with running(
                self.command(port),
                lambda: self._require_ready(port),
                log=log,
                within_s=self.within_s,
                poll_s=POLL_S,
                environment={**self.environment, MARK: mark},
            ) as found:
                meter = Meter(found.pid, mark)
                yield StartedServer(self, port, meter, found.ready_s, prepared_s)
        finally:
            end_all(Meter(NO_ROOT, mark))

    def _prepared_s(self) -> float | None:
        if self.prepare is None:
            return None
        began_s = time.monotonic()
        self.prepare()
        return time.monotonic() - began_s

    def _require_ready(self, port: int) -> None:
        if self.ready_path is not None:
            status, _ = ask_once(port, "GET", self.ready_path)
        else:
            body = next(iter(self.asks.values())).body(["is anyone there"])
            status, _ = ask_once(port, "POST", self.path, body)
        if status != HTTPStatus.OK:
            raise NoServer(f"{self.name} answers {status}")


@dataclass(frozen=True, slots=True)
class StartedServer:
    """A server that is ready."""

    subject: ServerSubject
    port: int
    meter: Meter
    ready_s: float
    prepared_s: float | None

    def standing(self, number: int, pace: Pace) -> Standing:
        return Standing(
            round=number,
            subject=self.subject.name,
            ready_s=self.ready_s,
            idle_cores=self._idle_cores(pace.idle_s) if self.subject.looks_idle else None,
            prepared_s=self.prepared_s,
        )

    def measure(self, row: Row, workload: Workload, clients: int, pace: Pace) -> Sample:
        job = Job(
            port=self.port,
            path=self.subject.path,
            clients=clients,
            seconds=pace.seconds,
            warm_s=pace.warm_s,
            bodies=workload.bodies(self.subject.asks[row]),
        )
        result, cpu_s = run_client(job, self.meter.cpu_s)
        return Sample(
            texts=result.texts,
            wall_s=result.wall_s,
            cpu_s=cpu_s,
            requests=result.requests,
            failures=result.failures or None,
            p50_ms=result.p50_ms,
            p99_ms=result.p99_ms,
            client_cpu_s=result.client_cpu_s,
        )

    def _idle_cores(self, seconds: float) -> float | None:
        if not seconds:
            return None
        time.sleep(SETTLE_S)
        began_s, before_s = time.monotonic(), self.meter.cpu_s()
        time.sleep(seconds)
        return (self.meter.cpu_s() - before_s) / (time.monotonic() - began_s)


def run_client(job: Job, cpu_s: Callable[[], float]) -> tuple[Result, float]:
    """Run the client's process; what came of it, and the CPU seconds that the server took meanwhile.

    Raises:
        NoServer: the client could not connect, or died.
    """
    with subprocess.Popen(  # noqa: S603
        CLIENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdin is not None  # noqa: S101
        assert client.stdout is not None  # noqa: S101
        try:
            client.stdin.write(json.dumps(asdict(job)) + "\n")
            client.stdin.flush()
            client.stdout.readline()
            before_s = cpu_s()
            client.stdin.write("go\n")
            client.stdin.flush()
            line = client.stdout.readline()
            spent_s = cpu_s() - before_s
        except BrokenPipeError:
            line = ""
        finally:
            if client.poll() is None and sys.exc_info()[0] is not None:
                client.kill()
    if not line:
        raise NoServer("the client died: the server took no connection, or closed them all")
    return Result(**json.loads(line)), spent_s


def ask_once(port: int, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    """One request, patiently; raises NoServer where nothing answers."""
    connection = HTTPConnection(HOST, port, timeout=ANSWER_WITHIN_S)
    try:
        content = None if body is None else body.encode()
        connection.request(method, path, content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, HTTPException) as error:
        raise NoServer(f"port {port}: {error}") from error
    finally:
        connection.close()


def end_all(meter: Meter, *, within_s: float = 10.0) -> None:
    """Wait for a stopped program's processes to go, and end those that do not; all carry its mark."""
    until_s = time.monotonic() + within_s
    while (left := meter.pids()) and time.monotonic() < until_s:
        time.sleep(POLL_S)
    for pid in left:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
