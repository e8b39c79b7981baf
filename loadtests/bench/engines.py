"""Engines without a server as subjects: the ceiling. One process a core, each with one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.engine_modes import ARRIVAL, ENGINE, MODES
from loadtests.bench.samples import IN_PROCESS, Cell, Pace, Row, Sample, Standing
from loadtests.bench.workloads import MIXED, Workload
from loadtests.errors import NoServer

WORKER = (sys.executable, "-m", "loadtests.bench.engine_worker")
MOST_TEXTS = 1280

Process = subprocess.Popen[str]


@dataclass(frozen=True, slots=True)
class EngineSubject:
    """The engine of one artifact."""

    folder: Path
    variant: str

    @property
    def name(self) -> str:
        return f"{ENGINE} {self.variant}"

    def plan(self, cells: Sequence[Cell]) -> Sequence[tuple[Cell, Sequence[Row]]]:
        """No clients: each workload once. Texts of like length need no sorting."""
        return [
            (
                Cell(workload, IN_PROCESS),
                tuple(
                    Row(ENGINE, self.variant, mode)
                    for mode in MODES
                    if mode != ARRIVAL or workload == MIXED
                ),
            )
            for workload in dict.fromkeys(cell.workload for cell in cells)
        ]

    @contextmanager
    def started(self, folder: Path) -> Iterator[StartedEngines]:
        began_s = time.monotonic()
        with ExitStack() as stack, (folder / f"{self.name}.log").open("w") as log:
            workers = [
                stack.enter_context(
                    subprocess.Popen(  # noqa: S603
                        WORKER,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                        env=os.environ | {"OMP_NUM_THREADS": "1"},
                    )
                )
                for _ in range(os.cpu_count() or 1)
            ]
            for worker in workers:
                stack.callback(_end, worker)
            _ask(workers, json.dumps({"folder": str(self.folder)}))
            yield StartedEngines(self, workers, time.monotonic() - began_s)


@dataclass(frozen=True, slots=True)
class StartedEngines:
    """Engines that wait for jobs."""

    subject: EngineSubject
    workers: Sequence[Process]
    ready_s: float

    def standing(self, number: int, pace: Pace) -> Standing:
        """Nothing runs without jobs."""
        del pace
        return Standing(round=number, subject=self.subject.name, ready_s=self.ready_s)

    def measure(self, row: Row, workload: Workload, clients: int, pace: Pace) -> Sample:
        """All processes at once, each over the same texts."""
        del clients
        job = {"mode": row.mode, "texts": workload.texts(MOST_TEXTS)}
        if pace.warm_s:
            _ask(self.workers, json.dumps(job | {"seconds": pace.warm_s}))
        done = _ask(self.workers, json.dumps(job | {"seconds": pace.seconds}))
        wall_s = sum(d["wall_s"] for d in done) / len(done)
        per_s = sum(d["texts"] / d["wall_s"] for d in done)  # windows do not end together
        return Sample(
            texts=sum(int(d["texts"]) for d in done),
            wall_s=sum(d["texts"] for d in done) / per_s if per_s else wall_s,
            cpu_s=sum(d["cpu_s"] for d in done),
        )


def _ask(workers: Sequence[Process], line: str) -> list[dict[str, float]]:
    for worker in workers:
        assert worker.stdin is not None  # noqa: S101
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
    return [_answer(worker) for worker in workers]


def _answer(worker: Process) -> dict[str, float]:
    assert worker.stdout is not None  # noqa: S101
    line = worker.stdout.readline()
    if not line:
        raise NoServer("an engine's process died; its log says why")
    answer: dict[str, float] = json.loads(line)
    return answer


def _end(worker: Process) -> None:
    if worker.stdin is not None:
        worker.stdin.close()
    try:
        worker.wait(10)
    except subprocess.TimeoutExpired:
        worker.kill()
