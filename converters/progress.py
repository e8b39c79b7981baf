"""Progress of long work: a live line on a terminal, one plain line a step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


class Progress:
    """Announces steps on standard error, so that standard output stays clean."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Show a step while it runs, and how long it took."""
        started_s = time.monotonic()
        if self._console.is_terminal:
            with self._console.status(title):
                yield
        else:
            self._console.print(f"{title} …", soft_wrap=True)
            yield
        self.line(f"{title}: done in {time.monotonic() - started_s:.1f} s")

    def line(self, text: str) -> None:
        """One finished line."""
        self._console.print(text, soft_wrap=True)
