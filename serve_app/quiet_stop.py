"""Ending a local server: a second Ctrl-C changes nothing, and nothing is printed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def interrupt_once() -> None:
    """Have SIGINT and SIGTERM raise KeyboardInterrupt, the first of them alone.

    `timeout` sends its signal twice, and people press Ctrl-C again: a second one would end the ending.
    """
    for number in SIGNALS:  # Ray has its own for SIGTERM; shells make their jobs ignore SIGINT
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _ignore()
    signal.default_int_handler(number, frame)


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def stop_quietly(*steps: Callable[[], None]) -> None:
    """Take every step, whatever becomes of those before it."""
    _ignore()  # a second Ctrl-C would leave processes behind
    with _silence():
        for step in steps:
            with contextlib.suppress(Exception):
                step()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """What Ray prints about actors that end as told, on either stream, is of no use to anyone."""
    streams = [sys.stdout.fileno(), sys.stderr.fileno()]
    kept = [os.dup(stream) for stream in streams]
    with Path(os.devnull).open("w") as nowhere:
        for stream in streams:
            os.dup2(nowhere.fileno(), stream)
    try:
        yield
    finally:
        sys.stdout.flush()
        for stream, before in zip(streams, kept, strict=True):
            os.dup2(before, stream)
            os.close(before)
