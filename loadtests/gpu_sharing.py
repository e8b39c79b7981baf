"""Several replicas on one card against one with bigger batches: processes that each run batch after batch.

Started as `python -m loadtests.gpu_sharing`, this is one such process: it says when it is ready, and runs
from the line "go" for its seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from loadtests.gpu_bench import Bench, mixed_lengths, texts_of
from loadtests.gpu_readings import Deadline, Reading

RUN_S = 4.0
READY, GO = "ready", "go"
FAR_S = 120.0


def sharing(bench: Bench, deadline: Deadline) -> Iterator[Reading]:
    """Tokens a second of all processes together; the same tokens are under way in each row of a kind."""
    seconds = 0.5 if bench.quick else RUN_S
    tokens = 512 if bench.quick else 16_384
    for processes, batch_tokens in ((1, tokens), (1, 2 * tokens), (2, tokens), (3, tokens)):
        if bench.quick and batch_tokens > tokens:
            return
        if deadline.left_s < seconds:
            return
        rate = _together(bench, processes, batch_tokens=batch_tokens, seconds=seconds)
        yield Reading(
            what="tokens/s, mixed",
            value=rate,
            of={"replicas": processes, "batch tokens": batch_tokens},
        )


def _together(bench: Bench, processes: int, *, batch_tokens: int, seconds: float) -> float:
    asked = json.dumps(
        {
            "device": bench.device.type,
            "quick": bench.quick,
            "batch_tokens": batch_tokens,
            "seconds": seconds,
        }
    )
    started = [
        subprocess.Popen(  # noqa: S603 - this very program
            [sys.executable, "-m", "loadtests.gpu_sharing", asked],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    try:
        for process in started:
            if process.stdout is None or process.stdout.readline().strip() != READY:
                raise RuntimeError("a replica's process did not start")
        for process in started:
            if process.stdin is not None:
                process.stdin.write(f"{GO}\n")
                process.stdin.flush()
        return sum(float(process.communicate(timeout=FAR_S)[0]) for process in started)
    finally:
        for process in started:
            process.kill()
            process.wait()


def run_for(bench: Bench, *, batch_tokens: int, seconds: float) -> float:
    """Tokens a second of one engine that is never without work."""
    engine = bench.packed(bench.small)
    lengths: list[int] = []
    total = 0
    for length in mixed_lengths(batch_tokens, max_tokens=bench.small.max_tokens):
        if total + length > batch_tokens and lengths:
            break
        lengths.append(length)
        total += length
    texts = texts_of(lengths)
    engine.embed(texts)
    print(READY, flush=True)
    sys.stdin.readline()
    started_s, done, pending = time.perf_counter(), 0, engine.start(texts)
    while time.perf_counter() - started_s < seconds:
        following = engine.start(texts)
        pending.vectors()
        pending, done = following, done + total
    pending.vectors()
    return (done + total) / (time.perf_counter() - started_s)


def main() -> None:
    """One replica's process."""
    asked = json.loads(sys.argv[1])
    bench = Bench(device=torch.device(asked["device"]), quick=asked["quick"], checkpoint=None)
    print(run_for(bench, batch_tokens=asked["batch_tokens"], seconds=asked["seconds"]))


if __name__ == "__main__":
    main()
