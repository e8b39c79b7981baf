"""What is on its way to each variant: the router's own tokens in flight, and what its replicas say.

A router knows at once what it sent itself; what a replica says of its queue and pace travels back on
every reply, is only as fresh as that reply, and fades with its age.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve_app.manifest import Profile

REPLICA_FORGOTTEN_AFTER_S = 30.0
TYPICAL_TOKENS = 64  # of a batch, where replicas of unequal speed are compared
CORRECTION_WEIGHT = 0.1  # of the newest observation, in the exponentially weighted means
OTHERS_FADE_S = 1.0  # what other routers had queued, as a replica last said, is history by then
RATE_WINDOW_S = 0.5  # over which the rate of arriving tokens is averaged


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """What a replica says of itself with every reply."""

    replica: str
    queued_tokens: int
    pace: float = 1.0  # time of its last batch / what the profile says: how others slow it
    measured: Profile | None = None  # its own, where the manifest's does not fit its hardware


class VariantLoad:
    """The changing side of one variant. All times are seconds on one clock that the caller owns."""

    def __init__(self, promised: Profile) -> None:
        """Nothing is on its way.

        Args:
            promised: the manifest's profile, which holds for replicas that measured none of their own.
        """
        self.profile = (
            promised  # to forecast with: the slowest replica's, as a request may meet any
        )
        self.cost_ms = promised.cost_ms
        self.inflight_tokens = 0
        self.calls = 0  # on their way to replicas, or there
        self.forecast_error: float | None = None
        self._called_tokens = 0
        self._running_since_s = 0.0
        self._rate = 0.0  # tokens per second
        self._rate_s = 0.0
        self._promised = promised
        self._seen: dict[str, tuple[float, ReplicaState]] = {}
        self._seen_s = 0.0
        self._others: dict[str, float] = {}  # replica -> tokens queued by other routers
        self._others_tokens = 0.0
        self._count = 1
        self._first_forgotten_s = math.inf

    @contextmanager
    def hold(self, tokens: int) -> Iterator[None]:
        """Count tokens as in flight; given back on completion, on error and on cancellation."""
        self.inflight_tokens += tokens
        try:
            yield
        finally:
            self.inflight_tokens -= tokens

    @contextmanager
    def call(self, tokens: int, *, now_s: float) -> Iterator[None]:
        """Count a call of so many tokens, from when it leaves to its reply, error or cancellation."""
        if self.calls == 0:
            self._running_since_s = now_s
        self.calls += 1
        self._called_tokens += tokens
        try:
            yield
        finally:
            self.calls -= 1
            self._called_tokens -= tokens

    def arrived(self, tokens: int, *, now_s: float) -> None:
        """Take a request's tokens into the rate at which they arrive."""
        fade = math.exp((self._rate_s - now_s) / RATE_WINDOW_S)
        self._rate = self._rate * fade + tokens / RATE_WINDOW_S
        self._rate_s = now_s

    def saw(self, state: ReplicaState, *, now_s: float) -> None:
        """A reply from a replica arrived: one of its batches ended, and its next one began."""
        known = self._seen.get(state.replica)
        self._seen[state.replica] = (now_s, state)
        self._seen_s = self._running_since_s = now_s
        ours = self._called_tokens / len(self._seen)
        self._others[state.replica] = max(state.queued_tokens - ours, 0.0)
        self._others_tokens = sum(self._others.values())
        if known is None or known[1].measured != state.measured:
            self._reckon()

    def lost(self) -> None:
        """A replica died; nobody says which, so all must show themselves again."""
        self._seen.clear()
        self._others.clear()
        self._others_tokens = 0.0
        self._count = 1

    def learn(self, *, predicted_ms: float, actual_ms: float) -> None:
        """Take one finished request into the running mean of the forecast's relative error."""
        error = abs(actual_ms - predicted_ms) / predicted_ms
        if self.forecast_error is None:
            self.forecast_error = error
        else:
            self.forecast_error += CORRECTION_WEIGHT * (error - self.forecast_error)

    def replicas(self, *, now_s: float) -> list[ReplicaState]:
        """The replicas heard of lately."""
        self._forget(now_s)
        return [state for _, state in self._seen.values()]

    def count(self, now_s: float) -> int:
        """How many replicas to reckon with. A ready variant has one at least."""
        if now_s > self._first_forgotten_s:
            self._forget(now_s)
        return self._count

    def _forget(self, now_s: float) -> None:
        oldest = now_s - REPLICA_FORGOTTEN_AFTER_S
        silent = [name for name, (seen_s, _) in self._seen.items() if seen_s < oldest]
        for name in silent:
            del self._seen[name], self._others[name]
        self._others_tokens = sum(self._others.values())
        self._reckon()

    def _reckon(self) -> None:
        """Anew from the replicas heard of: their number, and the slowest one's profile.

        Where all have fallen silent, the one heard last keeps its word.
        """
        self._count = max(1, len(self._seen))
        first_s = min((seen_s for seen_s, _ in self._seen.values()), default=math.inf)
        self._first_forgotten_s = first_s + REPLICA_FORGOTTEN_AFTER_S
        if self._seen:
            profiles = [state.measured or self._promised for _, state in self._seen.values()]
            self.profile = max(profiles, key=lambda p: p.fitted_ms(TYPICAL_TOKENS))
            self.cost_ms = self.profile.cost_ms

    def busy(self, now_s: float) -> int:
        """Replicas that have something to do, as far as this router knows."""
        return min(self.calls, self.count(now_s))

    def queue(self, now_s: float) -> tuple[float, float, float] | None:
        """What a request would find, for each replica; None where a replica has nothing to do.

        A bare tuple, as this is asked for each variant of each request.

        Returns:
            tokens ahead; milliseconds that the batch in the engine has run; tokens arriving a
            millisecond.
        """
        replicas = self._count if now_s <= self._first_forgotten_s else self.count(now_s)
        others = self._others_tokens
        if others:
            others *= math.exp((self._seen_s - now_s) / OTHERS_FADE_S)
        if self.calls < replicas and others < 1:
            return None
        rate = self._rate * math.exp((self._rate_s - now_s) / RATE_WINDOW_S)
        running_ms = (now_s - self._running_since_s) * 1000
        ahead = (self.inflight_tokens + others) / replicas
        return ahead, running_ms, rate / (1000 * replicas)
