"""What batches take in a server: alone, and while another engine is busy.

A profile is measured in a loop, where one shape follows itself. In service texts of all lengths take turns, with
pauses in which caches go cold, and each batch is handed to a thread and back. So the texts of the load tests
are sent one at a time, pinned to a variant, and the server tells what each took.

Then the same again, while another variant's engine hardly rests: it is sent one long text after the other, as
several at once would run side by side. Blocks of both kinds take turns. Two engines on fewer cores
than two slow each other by sharing them, which the simulator reckons with anyway; what remains is that
they share a cache and a memory. On a machine of two cores it holds a little of what client, router and Ray's
own processes take from the engines.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import geometric_mean

import httpx
import numpy as np
from numpy.typing import NDArray

from loadtests.errors import NoServer
from loadtests.sim_types import Fit
from loadtests.workload import LENGTHS, Texts

BLOCKS = 4  # of each kind
TEXTS = 20  # in a block, of all lengths as the load tests have them
PER_S = 15.0
BEFORE_S = 0.3  # until the other engine is surely busy
STALLED = 3.0  # times what other texts take / their profile: the host took the core, which is counted apart
Floats = NDArray[np.float64]
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class InService:
    """What `measure_engines` found."""

    served: Mapping[str, Fit]  # by variant
    together_pace: float


@dataclass(frozen=True, slots=True)
class Sample:
    """What each text of a block took in the engine, over the blocks: (blocks, texts)."""

    alone_ms: Floats
    together_ms: Floats | None


def measure_engines(
    client: httpx.Client, profiles: Mapping[str, Fit], *, cores: float
) -> InService:
    """Measure on a server that does nothing else.

    Args:
        client: of that server.
        profiles: of all its variants.
        cores: that its idle processes leave.
    """
    texts = block_of_texts()
    tokens = [_tokens(client, text) for text in texts]
    names, served, slower = list(profiles), {}, []
    for turn, variant in enumerate(names):
        other = names[(turn + 1) % len(names)] if len(names) > 1 else None
        sample = _sample(client, variant, texts, other=other)
        served[variant] = fit_of(tokens, sample.alone_ms, profiles[variant])
        if sample.together_ms is not None:
            slower.append(slower_by(sample.alone_ms, sample.together_ms))
    return InService(served=served, together_pace=together_pace(slower, cores=cores))


def block_of_texts() -> list[str]:
    """Texts of all lengths, by share, the long ones spread among the others."""
    pools, shares = Texts.built_in().pools, list(LENGTHS.values())
    counts = [max(round(TEXTS * share / sum(shares)), 1) for share in shares]
    placed = [
        ((number + 0.5) / count, text)
        for pool, count in zip(pools, counts, strict=True)
        for number, text in enumerate(pool[:count])
    ]
    return [text for _, text in sorted(placed)]


def fit_of(tokens: Sequence[int], took_ms: Floats, profile: Fit) -> Fit:
    """A line through what texts took, each weighed by what its profile says, without the host's stalls.

    Its height is the typical text's, as a profile's is.
    """
    lengths = np.tile(np.array(tokens, dtype=np.float64), len(took_ms))
    expected_ms, flat_ms = profile.ms(lengths), took_ms.reshape(-1)
    pace = flat_ms / expected_ms
    kept = pace <= STALLED * np.median(pace)
    rows = np.stack([np.ones_like(lengths), lengths], axis=1) / expected_ms[:, None]
    (base_ms, per_token_ms), *_ = np.linalg.lstsq(rows[kept], pace[kept], rcond=None)
    if base_ms < 0 or per_token_ms <= 0:  # too noisy for a line
        base_ms, per_token_ms = profile.base_ms, profile.per_token_ms
    beside = flat_ms[kept] / (base_ms + per_token_ms * lengths[kept])
    middle, p95 = np.quantile(beside, [0.5, 0.95])
    return Fit(
        base_ms=float(base_ms * middle),
        per_token_ms=float(per_token_ms * middle),
        spread=float(p95 / middle),
    )


def slower_by(
    alone_ms: Floats,
    together_ms: Floats,
) -> float:
    """How many times longer the typical text took: each is compared with itself."""
    return float(np.median(np.median(together_ms, axis=0) / np.median(alone_ms, axis=0)))


def together_pace(slower: Sequence[float], *, cores: float) -> float:
    """One number for all variants, without what two engines on so many cores lose by sharing them.

    They differ by less between variants than between two measurements of one.
    """
    if not slower:
        return 1.0
    return max(geometric_mean(slower) * min(cores / 2, 1.0), 1.0)


def _sample(
    client: httpx.Client, variant: str, texts: Sequence[str], *, other: str | None
) -> Sample:
    _block(client, variant, texts)  # the first time is not typical
    alone, together = [], []
    for _ in range(BLOCKS):
        alone.append(_block(client, variant, texts))
        if other is not None:
            with _busy(client, other):
                together.append(_block(client, variant, texts))
    return Sample(np.array(alone), np.array(together) if together else None)


def _block(client: httpx.Client, variant: str, texts: Sequence[str]) -> list[float]:
    """What each text takes in the engine."""
    began_s, took_ms = time.perf_counter(), []
    for number, text in enumerate(texts):
        time.sleep(max(began_s + number / PER_S - time.perf_counter(), 0.0))
        answer = client.post("/v1/embeddings", content=_body(text, variant), headers=JSON)
        took_ms.append(float(answer.raise_for_status().headers["X-Inference-Ms"]))
    return took_ms


@contextmanager
def _busy(client: httpx.Client, variant: str) -> Iterator[None]:
    """Keep a variant's engine busy meanwhile."""
    content = _body(max(Texts.built_in().pools[-1], key=len), variant)
    over, failed = threading.Event(), []

    def ask_on() -> None:
        with httpx.Client(base_url=client.base_url, timeout=client.timeout) as own:
            while not over.is_set():
                status = own.post("/v1/embeddings", content=content, headers=JSON).status_code
                if status != httpx.codes.OK:
                    failed.append(status)
                    return

    thread = threading.Thread(target=ask_on, name="busy", daemon=True)
    thread.start()
    time.sleep(BEFORE_S)
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failed:
        raise NoServer(
            f"--machine-from={client.base_url}: {variant} answers {failed[0]} to long texts"
        )


def _tokens(client: httpx.Client, text: str) -> int:
    answer = client.post("/v1/route", content=json.dumps({"input": text}), headers=JSON)
    return int(answer.raise_for_status().json()["tokens"])


def _body(given: str, variant: str) -> bytes:
    return json.dumps({"input": given, "variant": variant, "encoding_format": "base64"}).encode()
