"""Drives one phase: Locust in a process of its own, followed by the rows it records."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.errors import LoadTestError
from loadtests.phases import Phase
from loadtests.records import HEADER, ClientCost, Columns, Row, read_rows, to_columns
from loadtests.run_folder import LOG, REQUESTS, Ran

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
LOOK_EVERY_S = 0.5
RECENT_S = 10.0
START_GRACE_S = 30.0
END_GRACE_S = 90.0  # requests under way may take their whole timeout
STOP_GRACE_S = 15.0


@dataclass
class Follower:
    """Rows as they are written: how many, and those of the last seconds."""

    file: Path
    offset: int = 0
    seen: int = 0
    recent: list[Row] = field(default_factory=list)

    def look(self, *, now_s: float) -> Columns:
        """The rows of the last `RECENT_S`, by column."""
        if self.file.exists() and self.file.stat().st_size >= len(HEADER):
            rows, self.offset = read_rows(self.file, offset=self.offset)
            self.seen += len(rows)
            self.recent += rows
        self.recent = [r for r in self.recent if r.finished_s > now_s - RECENT_S]
        return to_columns(self.recent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """What all phases of a run share."""

    host: str
    folder: Path
    seed: int
    options: tuple[str, ...] = ()  # mix and texts, as the locustfile takes them

    def run(
        self,
        phase: Phase,
        *,
        watch: Callable[[int | None], None],
        look: Callable[[Columns, float], bool],
    ) -> Ran:
        """Run a phase to its end.

        Args:
            phase: the load.
            watch: is told the client's process while there is one.
            look: sees the last seconds' rows and the seconds passed, twice a second; True ends the phase.

        Raises:
            LoadTestError: Locust could not begin.
            KeyboardInterrupt: after the client has stopped and its rows are written.
        """
        record = self.folder / REQUESTS
        follower = Follower(record, offset=record.stat().st_size if record.exists() else 0)
        started_s = time.time()
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            begin = log.tell()
            client = subprocess.Popen(  # noqa: S603
                self._command(phase, record),
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours to pass on, after which we report
                # A shell's background jobs ignore SIGINT, and so would all they start.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
                env=os.environ | {"PYTHONPATH": os.pathsep.join([str(LOCUSTFILE.parents[1])])},
            )
        watch(client.pid)
        try:
            self._follow(client, phase, follower, look)
        finally:
            watch(None)
            _stop(client)
        if client.returncode and not follower.seen:
            raise LoadTestError(f"phase {phase.name}: {_last_line(self.folder / LOG, begin)}")
        return self.ran(phase, started_s=started_s)

    def ran(self, phase: Phase, *, started_s: float) -> Ran:
        """What is known of a phase that has ended."""
        return _ran(phase, self.folder / REQUESTS, started_s)

    def _command(self, phase: Phase, record: Path) -> list[str]:
        pin = ("--pin", phase.pin) if phase.pin else ()
        return [
            *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless"),
            *("--only-summary", "--loglevel", "WARNING", "--host", self.host),
            *("--arrivals", phase.arrivals, "--seed", str(self.seed), *self.options, *pin),
            *("--record", str(record), "--phase", phase.name),
        ]

    def _follow(
        self,
        client: subprocess.Popen[bytes],
        phase: Phase,
        follower: Follower,
        look: Callable[[Columns, float], bool],
    ) -> None:
        began_s = time.monotonic()
        latest_s = began_s + START_GRACE_S + phase.duration_s + END_GRACE_S
        while client.poll() is None and time.monotonic() < latest_s:
            time.sleep(LOOK_EVERY_S)
            now_s = time.time()
            if look(follower.look(now_s=now_s), time.monotonic() - began_s):
                return
        follower.look(now_s=time.time())


def _stop(client: subprocess.Popen[bytes]) -> None:
    """Have it write what it has, and end it."""
    if client.poll() is None:
        client.send_signal(signal.SIGINT)
        try:
            client.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            client.kill()
            client.wait()


def _ran(phase: Phase, record: Path, started_s: float) -> Ran:
    cost = ClientCost.read(record)
    record.with_name(f"{record.name}.cpu.json").unlink(
        missing_ok=True
    )  # the next phase has its own
    return Ran(
        name=phase.name,
        arrivals=phase.arrivals,
        pin=phase.pin,
        started_s=started_s,
        ended_s=time.time(),
        client_share=cost.cpu_s / cost.wall_s if cost and cost.wall_s else None,
        dropped=cost.dropped if cost else 0,
    )


def _last_line(log: Path, begin: int) -> str:
    """What Locust said last, which is why it ended."""
    with log.open("rb") as opened:
        opened.seek(begin)
        lines = opened.read().decode(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else "Locust ended without a word"
