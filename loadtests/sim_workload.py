"""What the simulated clients ask: when, how long a text, and in what time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtests.arrivals import Offsets, read_trace
from loadtests.bursts import bursty
from loadtests.sim_types import SimRequest

BUDGETS_MS = {50.0: 30, 100.0: 30, 250.0: 30, 1000.0: 10}  # and their shares
CLIENTS = 8
DRAWN = 2000  # texts of a pool that was not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPool:
    """Texts of a kind, by their tokens."""

    name: str
    share: float
    tokens: tuple[int, ...]


def assumed_pools() -> tuple[TokenPool, ...]:
    """Queries, passages and long texts, where nobody counted the real ones' tokens."""
    rng = random.Random(0)  # noqa: S311

    def normal(mean: float, deviation: float, low: int, high: int) -> tuple[int, ...]:
        return tuple(min(max(round(rng.gauss(mean, deviation)), low), high) for _ in range(DRAWN))

    return (
        TokenPool(name="query", share=60, tokens=normal(12, 4, 4, 30)),
        TokenPool(name="passage", share=30, tokens=normal(70, 25, 30, 160)),
        TokenPool(name="long", share=10, tokens=tuple(rng.randint(200, 256) for _ in range(DRAWN))),
    )


def steady(rate: float, duration_s: float, seed: int) -> Offsets:
    """Poisson arrivals."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.uniform(0.0, duration_s, rng.poisson(rate * duration_s)))


def in_bursts(rate: float, duration_s: float, seed: int) -> Offsets:
    """Arrivals of CV 13 with 1-s peaks of 26 times the mean: see `bursts.py`."""
    return bursty(rate, duration_s, np.random.default_rng(seed))


def replayed(file: Path, rate: float, duration_s: float, seed: int) -> Offsets:
    """A recorded trace at another mean rate, from a place that the seed chooses, round and round."""
    recorded = read_trace(file)
    recorded = recorded * ((len(recorded) - 1) / recorded[-1] / rate)
    length_s = float(recorded[-1]) + 1 / rate
    start_s = float(np.random.default_rng(seed).uniform(0.0, length_s))
    rounds = int(np.ceil(duration_s / length_s)) + 1
    offsets = np.concatenate([recorded + turn * length_s for turn in range(rounds)]) - start_s
    return np.asarray(offsets[(offsets >= 0) & (offsets < duration_s)])


def requests_at(
    offsets: Offsets, pools: Sequence[TokenPool], *, seed: int
) -> tuple[SimRequest, ...]:
    """One text for each arrival, of a length, a budget and a client drawn at random."""
    rng = random.Random(f"requests {seed}")  # noqa: S311
    count = len(offsets)
    kinds = rng.choices(pools, [pool.share for pool in pools], k=count)
    budgets = rng.choices(tuple(BUDGETS_MS), tuple(BUDGETS_MS.values()), k=count)
    names = [f"client-{number}" for number in range(CLIENTS)]
    return tuple(
        SimRequest(
            number=number,
            arrived_s=arrived_s,
            tokens=rng.choice(kind.tokens),
            budget_ms=budget_ms,
            client=rng.choice(names),
        )
        for number, (arrived_s, kind, budget_ms) in enumerate(
            zip(offsets.tolist(), kinds, budgets, strict=True)
        )
    )
