"""`python -m loadtests micro`: what the parts of a request's way cost on one thread, as text. Never a verdict."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator

import numpy as np

from converters.checkpoint import DEFAULT_CHECKPOINT, open_checkpoint
from converters.provenance import provenance
from loadtests import decision_bench
from loadtests.bench.workloads import MIXED, PASSAGE, QUERY, Ask, Workload, workloads
from loadtests.decision_bench import Timed
from serve_app.answers import embedding_items
from serve_app.api import Encoding, parse_request
from serve_app.asgi import Response
from serve_app.compiled import is_compiled
from serve_app.engines.tokenization import Tokenizer
from serve_app.errors import ConversionError
from serve_app.policy.batching import next_batch

LEAST_TIMES = 20
DIMS, TOKENS = 384, 256
MAX_TEXTS = 2048
QUEUES, BATCH_TOKENS = (16, 256), 512  # waiting texts
TOOLS = ("tokenizers", "orjson", "numpy")
NO_SCOPE = {"headers": ()}


def micro(args: argparse.Namespace) -> int:
    """Run the command; always 0, since times alone prove nothing."""
    times, rng = max(args.times, LEAST_TIMES), random.Random(args.seed)  # noqa: S311
    for timed in decision_bench.measured(max(args.decisions, LEAST_TIMES), seed=args.seed):
        print(timed)
    print(decision_bench.STATES)
    print(f"  (the policy is {'compiled' if is_compiled() else 'interpreted'})")
    for timed in batching(times, rng):
        print(timed)
    for timed in encoding(times, rng):
        print(timed)
    try:
        file = args.tokenizer or open_checkpoint(DEFAULT_CHECKPOINT).tokenizer_file
    except ConversionError as error:
        print(f"tokenising and parsing: not timed, {error}")
    else:
        for timed in tokenising(times, Tokenizer(file, max_tokens=TOKENS)):
            print(timed)
    for line in provenance(packages=TOOLS).lines:
        print(line)
    return 0


def batching(times: int, rng: random.Random) -> Iterator[Timed]:
    """Choosing the next batch among so many waiting texts."""
    for waiting in QUEUES:
        lengths = rng.choices((8, 11, 14, 70, 80, 256), (20, 20, 20, 15, 15, 10), k=waiting)
        yield timed(f"next_batch of {waiting}", lambda: next_batch(lengths, BATCH_TOKENS), times)  # noqa: B023


def encoding(times: int, rng: random.Random) -> Iterator[Timed]:
    """Vectors to JSON."""
    for kind in ("base64", "float"):
        for count in (1, 32):
            vectors = np.array(
                [[rng.uniform(-0.1, 0.1) for _ in range(DIMS)] for _ in range(count)], np.float32
            )
            yield timed(f"encode {count} as {kind}", lambda: _encoded(vectors, kind), times)  # noqa: B023


def tokenising(times: int, tokenizer: Tokenizer) -> Iterator[Timed]:
    """A request's body to texts, and these to token ids."""
    drawn = workloads(lambda text: tokenizer.encode([text]).tokens)
    for name in (QUERY, PASSAGE, MIXED):
        yield from _tokenising(name, drawn[name], times, tokenizer)


def _tokenising(name: str, workload: Workload, times: int, tokenizer: Tokenizer) -> Iterator[Timed]:
    (texts, *_) = workload.requests
    body = Ask({"variant": "onnx-int8"}).body(texts).encode()
    yield timed(f"parse {name}", lambda: parse_request(NO_SCOPE, body, max_texts=MAX_TEXTS), times)
    yield timed(f"tokenise {name}", lambda: tokenizer.encode(texts), times)


def timed(what: str, run: Callable[[], object], times: int) -> Timed:
    """Run something so often."""
    us = []
    for _ in range(times):
        started_ns = time.perf_counter_ns()
        run()
        us.append((time.perf_counter_ns() - started_ns) / 1000)
    return Timed(what, sorted(us))


def _encoded(vectors: np.ndarray, kind: Encoding) -> bytes:
    return Response.json({"object": "list", "data": embedding_items(vectors, kind)}).body
