"""Rows and runs of a server that can do exactly so much, without any server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from converters.provenance import Provenance
from loadtests.records import NOT_ADMITTED, OK, Row, RowWriter
from loadtests.run_folder import REQUESTS, SAMPLES, About, Ran
from loadtests.sampling import HEADER
from loadtests.served import Served

VARIANTS = {"fake-fp32": (1.0, 0.1), "fake-bf16": (0.99998, 0.06), "fake-int8": (0.997, 0.04)}
CLASSES = (("tight", 25.0), ("interactive", 100.0), ("relaxed", 1000.0), ("best", None))
START_S = 1_800_000_000.0

LONGEST_QUEUE_S = 0.5

Offered = Callable[[float], float]  # seconds -> requests per second


def rows(  # noqa: PLR0913
    phase: str,
    *,
    start_s: float = START_S,
    seconds: int = 40,
    offered: Offered,
    capacity: float = 1e9,
    seed: int = 0,
    missed: Callable[[int, np.random.Generator], bool] = lambda _second, _rng: False,
    pin: str | None = None,
) -> list[Row]:
    """Poisson arrivals at a server that works off `capacity` a second and refuses what would queue."""
    rng = np.random.default_rng(seed)
    found: list[Row] = []
    free_s = start_s
    for second in range(seconds):
        count = rng.poisson(offered(second + 0.5))
        for offset in np.sort(rng.random(count)):
            name, budget_ms = CLASSES[rng.integers(len(CLASSES))]
            due_s = start_s + second + float(offset)
            free_s = max(free_s, due_s)
            answered = free_s - due_s <= LONGEST_QUEUE_S
            free_s += answered / capacity
            latency_ms = float(5 + rng.exponential(2))
            late = missed(second, rng)
            if late and budget_ms:
                latency_ms += budget_ms
            load = offered(second) / capacity
            variant = pin or list(VARIANTS)[min(int(3 * load), 2)]
            found.append(
                Row(
                    phase=phase,
                    hint_class=name,
                    intended_s=due_s,
                    sent_s=due_s + 0.0005,
                    finished_s=due_s + latency_ms / 1000,
                    latency_ms=latency_ms,
                    status=OK if answered else NOT_ADMITTED,
                    variant=variant if answered else "",
                    fidelity=VARIANTS[variant][0] if answered else None,
                    budget_ms=budget_ms,
                    within_budget=None if budget_ms is None else answered and not late,
                    feasible=True,
                    texts=1,
                    error="" if answered else "not admitted",
                )
            )
    return found


PLAN: dict[str, tuple[int, Offered, str | None]] = {
    "warm-up": (3, lambda _: 5.0, None),
    "ramp": (40, lambda t: 5 + 4 * t, None),
    "routed-70": (8, lambda _: 70.0, None),
    **{f"pinned-{v}-70": (8, lambda _: 70.0, v) for v in VARIANTS},
    "routed-100": (6, lambda _: 100.0, None),
    **{f"pinned-{v}-100": (6, lambda _: 100.0, v) for v in VARIANTS},
    "spike": (10, lambda t: 150.0 if 4 < t < 6 else 35.0, None),
    "bursty": (10, lambda _: 50.0, None),
    "soak": (50, lambda _: 20.0, None),
}


def write_run(
    folder: Path, *, phases: int = len(PLAN), slos: tuple[str, ...] = (), client: float = 0.2
) -> About:
    """A run's folder as a run leaves it: a knee at 100 requests/s."""
    folder.mkdir(parents=True, exist_ok=True)
    writer, ran, at_s = RowWriter(folder / REQUESTS), [], START_S
    for name, (seconds, offered, pin) in list(PLAN.items())[:phases]:
        for row in rows(
            name, start_s=at_s, seconds=seconds, offered=offered, capacity=100, pin=pin
        ):
            writer.write(row)
        ran.append(
            Ran(
                name=name,
                arrivals=f"constant:rate=1,duration={seconds}",
                pin=pin,
                started_s=at_s,
                ended_s=at_s + seconds,
                client_share=client,
                dropped=0,
            )
        )
        at_s += seconds + 2
    writer.close()
    _write_samples(folder / SAMPLES, seconds=int(at_s - START_S))
    about = About(
        provenance=Provenance(
            machine="a test machine, 2 cores",
            tools={"locust": "1.2.3"},
            commit="abc123",
            command="python -m loadtests run",
            made_at="2026-01-01T00:00:00+00:00",
        ),
        host="http://<host>:8000",
        profile="quick",
        main_phase="routed-70",
        seed=0,
        mix="tight 30, best 10",
        served=tuple(
            Served(variant=v, fidelity=f, cost_ms=c, replicas=1) for v, (f, c) in VARIANTS.items()
        ),
        tokens_per_request=100.0,
        feasible={"tight": 0.72, "interactive": 1.0, "relaxed": 1.0},
        token_limits={"tight": 96, "interactive": 260, "relaxed": 260},
        estimated_texts=0,
        phases=tuple(ran),
        slos=slos,
    )
    about.write(folder)
    return about


def _write_samples(file: Path, *, seconds: int) -> None:
    lines = [",".join(HEADER)]
    for second in range(seconds):
        time_s = START_S + second
        for turn, variant in enumerate(VARIANTS):
            lines.append(f"{time_s},replicas,{variant},{1 + (second > 30 * turn)}")
            lines.append(f"{time_s},queued_tokens,{variant},{10 * turn * (second % 7)}")
        lines.append(f"{time_s},server_rss_bytes,,{1.9e9 + 1e5 * second}")
        lines.append(f"{time_s},server_cpu,,1.2")
        lines.append(f"{time_s},client_cpu,,0.3")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
