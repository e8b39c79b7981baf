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
from serve_app.policy.forecast import fit_of

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


class Engines:
    """How many batches the replicas of all variants run, as far as one router knows."""

    __slots__ = ("busy",)

    def __init__(self) -> None:
        self.busy = 0


class VariantLoad:
    """The changing side of one variant. All times are seconds on one clock that the caller owns."""

    def __init__(
        self, promised: Profile, engines: Engines | None = None, *, streams: int = 1
    ) -> None:
        """Nothing is on its way.

        Args:
            promised: the manifest's profile, which holds for replicas that measured none of their own.
            engines: to be told of what this variant's replicas run.
            streams: batches that each of them runs side by side, at most.
        """
        self.streams = streams
        self.profile = (
            promised  # to forecast with: the slowest replica's, as a request may meet any
        )
        self.cost_ms = promised.cost_ms
        self.fit = fit_of(promised)
        self._engines = engines or Engines()
        self.inflight_tokens = 0
        self.calls = 0  # on their way to replicas, or there
        self.forecast_error: float | None = None
        self._called_tokens = 0
        # Read in each decision, by `outlook.look_at_all`:
        self.running_since_s = 0.0  # the batch in the engine
        self.places = streams  # of batches, in the replicas to reckon with
        self.counted = 1  # which are so many, until
        self.forgets_s = math.inf  # one was silent for too long
        self.others_tokens = 0.0  # queued by other routers, as of
        self.seen_s = 0.0  # the last reply
        self._rate = 0.0  # tokens per second
        self._rate_s = 0.0
        self._promised = promised
        self._seen: dict[str, tuple[float, ReplicaState]] = {}
        self._others: dict[str, float] = {}  # replica -> tokens queued by other routers

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
            self.running_since_s = now_s
        if self.calls < self.places:
            self._engines.busy += 1
        self.calls += 1
        self._called_tokens += tokens
        try:
            yield
        finally:
            self.calls -= 1
            self._called_tokens -= tokens
            if self.calls < self.places:
                self._engines.busy -= 1

    def arrived(self, tokens: int, *, now_s: float) -> None:
        """Take a request's tokens into the rate at which they arrive."""
        fade = math.exp((self._rate_s - now_s) / RATE_WINDOW_S)
        self._rate = self._rate * fade + tokens / RATE_WINDOW_S
        self._rate_s = now_s

    def saw(self, state: ReplicaState, *, now_s: float) -> None:
        """A reply from a replica arrived: one of its batches ended, and its next one began."""
        known = self._seen.get(state.replica)
        self._seen[state.replica] = (now_s, state)
        self.seen_s = self.running_since_s = now_s
        ours = self._called_tokens / len(self._seen)
        self._others[state.replica] = max(state.queued_tokens - ours, 0.0)
        self.others_tokens = sum(self._others.values())
        if known is None or known[1].measured != state.measured:
            self._reckon()

    def lost(self) -> None:
        """A replica died; nobody says which, so all must show themselves again."""
        self._seen.clear()
        self._others.clear()
        self.others_tokens = 0.0
        self._set_count(1)

    def learn(self, *, predicted_ms: float, actual_ms: float) -> None:
        """Take one finished request into the running mean of the forecast's relative error."""
        error = abs(actual_ms - predicted_ms) / predicted_ms
        if self.forecast_error is None:
            self.forecast_error = error
        else:
            self.forecast_error += CORRECTION_WEIGHT * (error - self.forecast_error)

    def replicas(self, *, now_s: float) -> list[ReplicaState]:
        """The replicas heard of lately."""
        self.forget(now_s)
        return [state for _, state in self._seen.values()]

    def count(self, now_s: float) -> int:
        """How many replicas to reckon with. A ready variant has one at least."""
        if now_s > self.forgets_s:
            self.forget(now_s)
        return self.counted

    def forget(self, now_s: float) -> None:
        """Count no longer who has been silent for too long."""
        oldest = now_s - REPLICA_FORGOTTEN_AFTER_S
        silent = [name for name, (seen_s, _) in self._seen.items() if seen_s < oldest]
        for name in silent:
            del self._seen[name], self._others[name]
        self.others_tokens = sum(self._others.values())
        self._reckon()

    def _reckon(self) -> None:
        """Anew from the replicas heard of: their number, and the slowest one's profile.

        Where all have fallen silent, the one heard last keeps its word.
        """
        self._set_count(max(1, len(self._seen)))
        first_s = min((seen_s for seen_s, _ in self._seen.values()), default=math.inf)
        self.forgets_s = first_s + REPLICA_FORGOTTEN_AFTER_S
        if self._seen:
            profiles = [state.measured or self._promised for _, state in self._seen.values()]
            self.profile = max(profiles, key=lambda p: p.fitted_ms(TYPICAL_TOKENS))
            self.cost_ms, self.fit = self.profile.cost_ms, fit_of(self.profile)

    def _set_count(self, count: int) -> None:
        places = count * self.streams
        self._engines.busy += min(self.calls, places) - min(self.calls, self.places)
        self.counted, self.places = count, places

    def ahead(self, now_s: float, *, room: bool = False) -> float | None:
        """Tokens that a request would find ahead of it, for each batch that runs; None where it starts at once.

        Args:
            now_s: when.
            room: whether cores are idle: then a replica takes another batch beside those it runs.
        """
        if now_s > self.forgets_s:
            self.forget(now_s)
        others = self.others_tokens
        if others:
            others *= math.exp((self.seen_s - now_s) / OTHERS_FADE_S)
        calls, running = self.calls, self.counted
        if others < 1 and calls < (self.places if room else running):
            return None
        if calls > running:
            running = calls if calls < self.places else self.places
        return (self.inflight_tokens + others) / running

    def running_ms(self, now_s: float) -> float:
        """How long the batch in the engine has run."""
        return (now_s - self.running_since_s) * 1000

    def rate(self, now_s: float) -> float:
        """Tokens that arrive at each replica a millisecond."""
        fade = math.exp((self._rate_s - now_s) / RATE_WINDOW_S)
        return self._rate * fade / (1000 * self.counted)
