"""`GET /metrics`: what one router counted and what it believes, for Prometheus.

Requests are counted in plain integers; the text is made when somebody asks. With several routers a
scrape meets one of them, which says so in the label `router`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from serve_app.errors import DeadlineExceeded, NotAdmitted
from serve_app.policy.brain import Brain

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "embeddings_"


class Outcome(StrEnum):
    """What became of an admitted request."""

    ANSWERED = "answered"
    LATE = "late"
    DISCONNECTED = "disconnected"
    TURNED_AWAY = "turned_away"  # by a full queue
    FAILED = "failed"

    @classmethod
    def of(cls, error: BaseException) -> Outcome:
        """What an error made of the request that it ended."""
        if isinstance(error, DeadlineExceeded):
            return cls.LATE
        if isinstance(error, asyncio.CancelledError):
            return cls.DISCONNECTED
        return cls.TURNED_AWAY if isinstance(error, NotAdmitted) else cls.FAILED


class Tally:
    """What became of one router's requests."""

    def __init__(self, variants: Iterable[str]) -> None:
        self.refused = 0  # read, decided, and not admitted
        self.unread = 0  # refused at the door
        self.requests = {name: dict.fromkeys(Outcome, 0) for name in variants}
        self.seconds = dict.fromkeys(self.requests, 0.0)  # of those answered

    def answered(self, variant: str, seconds: float) -> None:
        """An admitted request has its vectors."""
        self.ended(variant, Outcome.ANSWERED)
        self.seconds[variant] += seconds

    def ended(self, variant: str, outcome: Outcome) -> None:
        """An admitted request has its end."""
        self.requests[variant][outcome] += 1


def exposition(brain: Brain, tally: Tally, *, now_s: float) -> bytes:
    """All metrics as Prometheus reads them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(brain, tally, now_s))
    return generate_latest(registry)


class _Snapshot(Collector):
    """What holds at one moment."""

    def __init__(self, brain: Brain, tally: Tally, now_s: float) -> None:
        self._brain = brain
        self._tally = tally
        self._now_s = now_s
        self._router = f"{socket.gethostname()}:{os.getpid()}"

    def collect(self) -> Iterator[Metric]:
        yield from self._counted()
        yield from self._believed()
        yield from self._brownout()

    def _counted(self) -> Iterator[Metric]:
        tally = self._tally
        requests = CounterMetricFamily(
            f"{PREFIX}requests",
            "Admitted requests by what became of them",
            labels=("router", "variant", "outcome"),
        )
        seconds = SummaryMetricFamily(
            f"{PREFIX}seconds",
            "From decision to vectors, of answered requests",
            labels=("router", "variant"),
        )
        for variant, outcomes in tally.requests.items():
            for outcome, count in outcomes.items():
                requests.add_metric((self._router, variant, outcome), count)
            answered = outcomes[Outcome.ANSWERED]
            seconds.add_metric((self._router, variant), answered, tally.seconds[variant])
        refused = CounterMetricFamily(
            f"{PREFIX}refused", "Requests that were not admitted", labels=("router",)
        )
        refused.add_metric((self._router,), tally.refused)
        unread = CounterMetricFamily(
            f"{PREFIX}unread",
            "Requests refused unread, while the router could not keep up",
            labels=("router",),
        )
        unread.add_metric((self._router,), tally.unread)
        yield from (requests, seconds, refused, unread)

    def _believed(self) -> Iterator[Metric]:
        brain, now_s = self._brain, self._now_s
        loads = {variant: brain.load(variant) for variant in self._tally.requests}
        yield self._gauge("ready", "Whether a replica is up", {v: brain.is_ready(v) for v in loads})
        yield self._gauge(
            "replicas",
            "Replicas heard of",
            {v: len(x.replicas(now_s=now_s)) for v, x in loads.items()},
        )
        yield self._gauge(
            "inflight_tokens",
            "Admitted, not answered",
            {v: x.inflight_tokens for v, x in loads.items()},
        )
        yield self._gauge(
            "queued_tokens",
            "Waiting at the replicas, as they last said",
            {v: sum(r.queued_tokens for r in x.replicas(now_s=now_s)) for v, x in loads.items()},
        )
        yield self._gauge(
            "demand_engines",
            "Engines that would be busy if each request had its first choice",
            {v: brain.demand.busy(v, now_s=now_s) for v in loads},
        )
        yield self._gauge(
            "forecast_error",
            "Mean of |actual - median forecast| / forecast",
            {v: x.forecast_error for v, x in loads.items() if x.forecast_error is not None},
        )

    def _gauge(self, name: str, meaning: str, values: Mapping[str, float]) -> Metric:
        gauge = GaugeMetricFamily(f"{PREFIX}{name}", meaning, labels=("router", "variant"))
        for variant, value in values.items():
            gauge.add_metric((self._router, variant), value)
        return gauge

    def _brownout(self) -> Iterator[Metric]:
        brownout = self._brain.brownout
        for name, meaning, value in (
            ("brownout_level", "Steps that unhinted requests are lowered by", brownout.level),
            ("brownout_floor", "Fidelity floor of unhinted requests", brownout.floor),
            (
                "miss_share",
                "Share of the last seconds' requests refused or late",
                brownout.miss_share,
            ),
        ):
            gauge = GaugeMetricFamily(f"{PREFIX}{name}", meaning, labels=("router",))
            gauge.add_metric((self._router,), value)
            yield gauge
