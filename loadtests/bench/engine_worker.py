"""`python -m loadtests.bench.engine_worker`: an engine in a process of its own, one thread, no server.

Lines of JSON come in, one answer goes out for each: first the artifact, then jobs.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from loadtests.bench.batches import arrival_batches, sorted_batches
from loadtests.bench.engine_modes import MODES, Batches
from serve_app.engines.base import Engine, TokenIds, open_engine
from serve_app.engines.tokenization import Tokenizer
from serve_app.manifest import TOKENIZER_NAME, Manifest, read_manifest

WINDOW_TEXTS = 256  # texts that a sorter sees at once


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineJob:
    """What to run, over and over, for so long."""

    mode: str
    texts: list[str]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What came of it; CPU is that of all of the process's threads."""

    texts: int
    wall_s: float
    cpu_s: float


class Worker:
    """An open engine with its tokenizer."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, *, batch_tokens: int) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._batch_tokens = batch_tokens

    @classmethod
    def open(cls, folder: Path) -> Worker:
        """Of an artifact, with the batch size of its profile."""
        manifest: Manifest = read_manifest(folder)
        tokenizer = Tokenizer(folder / TOKENIZER_NAME, max_tokens=manifest.checkpoint.max_tokens)
        engine = open_engine(folder, manifest, threads=1)
        return cls(engine, tokenizer, batch_tokens=manifest.profile.batch_tokens)

    def run(self, job: EngineJob, *, now_s: Callable[[], float] = time.perf_counter) -> Done:
        """Run whole batches until the time is up; one window at least."""
        mode = MODES[job.mode]
        calls = self._calls(job.texts, mode.batches, tokenises=mode.tokenises)
        texts, began_s, began_cpu_s = 0, now_s(), time.process_time()
        for embed in calls:
            texts += embed()
            if now_s() - began_s >= job.seconds:
                break
        return Done(texts=texts, wall_s=now_s() - began_s, cpu_s=time.process_time() - began_cpu_s)

    def _calls(
        self, texts: Sequence[str], batches: Batches, *, tokenises: bool
    ) -> Iterator[Callable[[], int]]:
        if batches == "one a call":
            return self._one_a_call(texts, tokenises=tokenises)
        return self._windows(texts[:WINDOW_TEXTS], batches, tokenises=tokenises)

    def _one_a_call(self, texts: Sequence[str], *, tokenises: bool) -> Iterator[Callable[[], int]]:
        known = self._tokenizer.encode(texts).texts
        for text, ids in itertools.cycle(zip(texts, known, strict=True)):
            given = self._tokenizer.encode([text]).texts if tokenises else [ids]
            yield partial(self._embed, [given])

    def _windows(
        self, texts: Sequence[str], batches: Batches, *, tokenises: bool
    ) -> Iterator[Callable[[], int]]:
        known = self._tokenizer.encode(texts).texts
        while True:
            given = self._tokenizer.encode(texts).texts if tokenises else known
            # A whole window or nothing: its short texts come first, and would flatter.
            yield partial(self._embed, self._cut(given, batches))

    def _embed(self, batches: Sequence[Sequence[TokenIds]]) -> int:
        return sum(len(self._engine.embed(batch)) for batch in batches)

    def _cut(self, texts: Sequence[TokenIds], batches: Batches) -> list[list[TokenIds]]:
        lengths = [len(text) for text in texts]
        if batches == "sorted":
            chosen = sorted_batches(lengths, self._batch_tokens)
        else:
            chosen = arrival_batches(len(texts))
        return [[texts[i] for i in positions] for positions in chosen]


def main() -> None:
    """Serve jobs until stdin ends."""
    lines = iter(sys.stdin)
    worker = Worker.open(Path(json.loads(next(lines))["folder"]))
    print(json.dumps({"ready": True}), flush=True)
    for line in lines:
        done = worker.run(EngineJob(**json.loads(line)))
        print(
            json.dumps({"texts": done.texts, "wall_s": done.wall_s, "cpu_s": done.cpu_s}),
            flush=True,
        )


if __name__ == "__main__":
    main()
