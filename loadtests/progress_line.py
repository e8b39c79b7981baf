"""One live line while a phase runs, and one that stays when it is over."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from loadtests.measures import Measures

ERASE = "\r\x1b[K"


class ProgressLine:
    """Writes to standard error; where that is no terminal, only lines that stay."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()

    def now(self, text: str) -> None:
        """Replace the live line."""
        if self._live:
            self._stream.write(f"{ERASE}{text}")
            self._stream.flush()

    def done(self, text: str) -> None:
        """Put a line that stays in its place."""
        self._stream.write(f"{ERASE if self._live else ''}{text}\n")
        self._stream.flush()


def numbers(measured: Measures | None) -> str:
    """The numbers of a line."""
    if measured is None:
        return "no answer yet"
    m = measured
    within = "" if m.within_budget is None else f", {m.within_budget:.1%} within budget"
    p95 = "" if m.p95_ms is None else f", p95 {m.p95_ms:.0f} ms"
    troubles = (("429", m.rejected), ("504", m.expired), ("errors", m.errors))
    counts = "".join(f", {name}: {count}" for name, count in troubles if count)
    return f"{m.offered_per_s:.0f} asked/s, {m.throughput:.0f} answered/s{p95}{within}{counts}"


def left(seconds: float) -> str:
    """`1:05`."""
    return time.strftime("%M:%S", time.gmtime(max(seconds, 0))).removeprefix("0")
