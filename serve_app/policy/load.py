"""What is on its way to each variant: the router's own tokens in flight, and the replicas it has seen.

A router knows at once what it sent itself; what a replica says of its queue travels back on every
reply and is only as fresh as that reply.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve_app.manifest import Profile

REPLICA_FORGOTTEN_AFTER_S = 30.0
TYPICAL_TOKENS = 64  # of a batch, where replicas of unequal speed are compared
CORRECTION_WEIGHT = 0.1  # of the newest observation, in the exponentially weighted means


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """What a replica says of itself with every reply."""

    replica: str
    queued_tokens: int
    measured: Profile | None = None  # its own, where the manifest's does not fit its hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One variant's load at one moment, as the forecast reads it."""

    inflight_tokens: int
    replicas: int
    hop_ms: float


class VariantLoad:
    """The changing side of one variant: tokens in flight, replicas, and what a call costs on top."""

    def __init__(self) -> None:
        self.inflight_tokens = 0
        self.hop_ms: float | None = None  # learned from every call, the router's warm-up first
        self.forecast_error: float | None = None
        self._seen: dict[str, tuple[float, ReplicaState]] = {}
        self._newest: ReplicaState | None = None

    @contextmanager
    def hold(self, tokens: int) -> Iterator[None]:
        """Count tokens as in flight; given back on completion, on error and on cancellation."""
        self.inflight_tokens += tokens
        try:
            yield
        finally:
            self.inflight_tokens -= tokens

    def saw(self, state: ReplicaState, *, hop_ms: float, now_s: float) -> None:
        """A reply from a replica arrived; the call took `hop_ms` beyond queue and engine."""
        self._seen[state.replica] = (now_s, state)
        self._newest = state
        if self.hop_ms is None:
            self.hop_ms = hop_ms
        else:
            self.hop_ms += CORRECTION_WEIGHT * (hop_ms - self.hop_ms)

    def lost(self) -> None:
        """A replica died; nobody says which, so all must show themselves again."""
        self._seen.clear()

    def learn(self, *, predicted_ms: float, actual_ms: float) -> None:
        """Take one finished request into the running mean of the forecast's relative error."""
        error = abs(actual_ms - predicted_ms) / predicted_ms
        if self.forecast_error is None:
            self.forecast_error = error
        else:
            self.forecast_error += CORRECTION_WEIGHT * (error - self.forecast_error)

    def replicas(self, *, now_s: float) -> list[ReplicaState]:
        """The replicas heard of lately."""
        oldest = now_s - REPLICA_FORGOTTEN_AFTER_S
        self._seen = {name: seen for name, seen in self._seen.items() if seen[0] >= oldest}
        return [state for _, state in self._seen.values()]

    def profile(self, promised: Profile, *, now_s: float) -> Profile:
        """What to forecast with: the profile of the slowest replica, as a request may meet any.

        Args:
            promised: the manifest's, which holds for replicas that measured none of their own.
            now_s: when. Of replicas that have all fallen silent, the one heard last speaks.
        """
        newest = [self._newest] if self._newest else []
        states = self.replicas(now_s=now_s) or newest
        profiles = [state.measured or promised for state in states] or [promised]
        return max(profiles, key=lambda p: p.fitted_ms(TYPICAL_TOKENS))

    def at(self, *, now_s: float) -> Load:
        """A frozen view for the forecast. A ready variant has one replica at least."""
        return Load(
            inflight_tokens=self.inflight_tokens,
            replicas=max(1, len(self.replicas(now_s=now_s))),
            hop_ms=self.hop_ms or 0.0,
        )
