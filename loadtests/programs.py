"""A program of ours or of others for the time of a block: started, waited for, and stopped again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.errors import NoServer

STOPPED_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Running:
    """A program that is ready."""

    pid: int
    ready_s: float  # from its start on


@contextmanager
def running(
    command: Sequence[str],
    ready: Callable[[], None],
    *,
    log: Path,
    within_s: float,
    poll_s: float = 0.5,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Start a program, wait until it is ready, and end it after the block.

    Args:
        command: its words.
        ready: raises NoServer while it is not.
        log: file for all that it says.
        within_s: how long it may take to get ready.
        poll_s: how often to look.
        environment: variables on top of ours.

    Raises:
        NoServer: it ended, or did not get ready; with its last line.
    """
    with log.open("w", encoding="utf-8") as opened:
        began_s = time.monotonic()
        process = subprocess.Popen(  # noqa: S603
            command,
            stdout=opened,
            stderr=opened,
            start_new_session=True,
            env=os.environ | dict(environment or {}),
        )
    try:
        while True:
            if process.poll() is not None or time.monotonic() > began_s + within_s:
                raise NoServer(f"the server did not get ready: {_last_line(log)}")
            try:
                ready()
                break
            except NoServer:
                time.sleep(poll_s)
        yield Running(process.pid, time.monotonic() - began_s)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
