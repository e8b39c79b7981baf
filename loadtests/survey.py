"""Before any load: how many tokens the texts have, and how many an idle server admits under each budget.

Admission is monotone in tokens, so the limit is found by bisection. Forecasts jitter with the machine:
at the limit itself the server is asked several times, and one refusal is enough.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import cycle, islice
from typing import Protocol

import numpy as np

from loadtests.feasibility import Feasibility, digest, has_limit
from loadtests.served import Route, Served
from loadtests.workload import HintClass, Texts, Workload

MOST_ASKED = 4000  # at 2 to 3 ms each, about ten seconds
SAMPLE = 1000  # of more texts than that
CONFIRMED = 3
TOLD_AFTER_S, TOLD_EVERY = 1.0, 50
RAMP_TOP = 2.5  # of what the cheapest variant's profile says it could sustain
UNHINTED = HintClass(name="survey", weight=1)

Ask = Callable[[bytes], Route]
Rung = tuple[int, list[str]]  # texts of so many tokens


class Asked(Protocol):
    """A server that tells its decisions."""

    def asking(self) -> AbstractContextManager[Ask]:
        """Give a function that asks for the decision on a request."""


def survey(server: Asked, workload: Workload, *, now: Callable[[str], None]) -> Feasibility:
    """Ask for each text's tokens, then for each class's limit; nothing is computed.

    Args:
        server: idle.
        workload: its mix and texts.
        now: shows how far it has come, where it takes its time.

    Raises:
        NoServer: the server does not answer, or with an error.
    """
    texts = list(dict.fromkeys(text for pool in workload.texts.pools for text in pool))
    chosen = _sample(texts) if len(texts) > MOST_ASKED else texts
    with server.asking() as ask:
        counted = _count(ask, chosen, now)
        rungs = _rungs(counted)
        limits = {c.name: _limit(ask, c, rungs) for c in workload.classes if has_limit(c)}
    return Feasibility(
        tokens=_of_all(workload.texts, counted),
        token_limits=limits,
        estimated_texts=len(texts) - len(counted),
        digest=digest(workload.texts),
    )


def _sample(texts: Sequence[str]) -> list[str]:
    """Texts of all lengths, the shortest and the longest among them."""
    by_length = sorted(texts, key=len)
    return [by_length[i] for i in np.linspace(0, len(texts) - 1, SAMPLE).astype(int)]


def _count(ask: Ask, texts: Sequence[str], now: Callable[[str], None]) -> dict[str, int]:
    counted: dict[str, int] = {}
    told_from_s = time.monotonic() + TOLD_AFTER_S
    for text in texts:
        counted[text] = ask(UNHINTED.body([text])).tokens
        if len(counted) % TOLD_EVERY == 0 and time.monotonic() > told_from_s:
            now(f"survey: {len(counted)} of {len(texts)} texts")
    return counted


def _rungs(counted: dict[str, int]) -> list[Rung]:
    by_tokens: defaultdict[int, list[str]] = defaultdict(list)
    for text, tokens in counted.items():
        by_tokens[tokens].append(text)
    return sorted(by_tokens.items())


def _limit(ask: Ask, hint_class: HintClass, rungs: Sequence[Rung]) -> int:
    """Find the most tokens that are admitted each time, 0 for none."""

    def admitted(rung: Rung) -> bool:
        texts = islice(cycle(rung[1]), CONFIRMED)
        return all(ask(hint_class.body([text])).admitted for text in texts)

    refused = bisect_left(rungs, True, key=lambda rung: not admitted(rung))
    # A stall while bisecting would leave the limit anywhere: it is looked for once more from there.
    while refused < len(rungs) and admitted(rungs[refused]):
        refused += 1
    while refused and not admitted(rungs[refused - 1]):
        refused -= 1
    return rungs[refused - 1][0] if refused else 0


def _of_all(texts: Texts, counted: dict[str, int]) -> tuple[tuple[int, ...], ...]:
    """Tokens by pool; those of a text that was not asked for, by its length between two that were."""
    known = sorted((len(text), tokens) for text, tokens in counted.items())
    lengths, tokens = zip(*known, strict=True)
    return tuple(
        tuple(
            counted[text] if text in counted else round(np.interp(len(text), lengths, tokens))
            for text in pool
        )
        for pool in texts.pools
    )


def ramp_top(served: Sequence[Served], tokens_per_request: float) -> float:
    """Requests per second that should be more than the server can take, by its own profiles."""
    best = max(max(v.replicas, 1) / v.cost_ms for v in served)  # tokens per millisecond
    return RAMP_TOP * 1000 * best / max(tokens_per_request, 1)
