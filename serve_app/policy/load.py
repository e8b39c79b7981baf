"""What is on its way to each variant: the router's own tokens in flight, and what its replicas say.

A router knows at once what it sent itself; what a replica says of its queue and pace travels back on
every reply, is only as fresh as that reply, and fades with its age.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.manifest import Profile
from serve_app.policy.forecast import batches_ms, fit_of
from serve_app.policy.pool import MOST_LOAD, Pool
from serve_app.policy.replica_state import ReplicaState
from serve_app.policy.turns import Line, can_make_it, turn_after_ms, turn_s, with_overtakers_ms

REPLICA_FORGOTTEN_AFTER_S = 30.0
TYPICAL_TOKENS = 64  # of a batch, where replicas of unequal speed are compared
CORRECTION_WEIGHT = 0.1  # of the newest observation, in the exponentially weighted means
OTHERS_FADE_S = 1.0  # what other routers had queued, as a replica last said, is history by then
RATE_WINDOW_S = 0.5  # over which the rate of arriving tokens is averaged
SHARE_OF_BASE = 0.35  # of a batch's own cost that a text pays at least: it seldom rides alone


def work_ms(fit: tuple[float, float, int], tokens: int, *, texts: float = 1) -> float:
    """What so many tokens take an engine, in batches that their texts share with others; see `fit_of`."""
    base_ms, per_token_ms, batch_tokens = fit
    batches = min(max(tokens / batch_tokens, SHARE_OF_BASE), texts)
    return base_ms * batches + per_token_ms * tokens


class Waiting:
    """One text's place in the lines that it waits in."""

    __slots__ = ("_lines", "_work_ms", "turn_s")

    def __init__(self, lines: tuple[Line, ...], turn_s: float, work_ms: float) -> None:
        self._lines = lines
        self.turn_s = turn_s
        self._work_ms = work_ms

    def leave(self) -> None:
        """It was sent, or nobody wants it any more. To leave twice is to leave once."""
        lines, self._lines = self._lines, ()
        for line in lines:
            line.remove(self.turn_s, self._work_ms)


class VariantLoad:
    """The changing side of one variant. All times are seconds on one clock that the caller owns."""

    def __init__(
        self,
        promised: Profile,
        pool: Pool | None = None,
        *,
        variant: str = "",
        streams: int = 1,
    ) -> None:
        """Nothing is on its way.

        Args:
            promised: the manifest's profile, which holds for replicas that measured none of their own.
            pool: what its replicas run on; one of its own unless told.
            variant: its name in that pool.
            streams: batches that each of them runs side by side, at most.
        """
        self.pool = pool or Pool(cores=1.0, is_shared=False)
        self.line = Line()  # of this variant alone
        self._variant = variant
        self.streams = streams
        self.profile = (
            promised  # to forecast with: the slowest replica's, as a request may meet any
        )
        self.cost_ms = promised.cost_ms
        self.fit = fit_of(promised)
        self.inflight_tokens = 0
        self.calls = 0  # on their way to replicas, or there
        self.forecast_error: float | None = None
        self._called_tokens = 0
        self.places = streams  # of batches, in the replicas to reckon with
        self._counted = 1  # which are so many, until
        self._forgets_s = math.inf  # one was silent for too long
        self._others_tokens = 0.0  # queued by other routers, as of
        self._seen_s = 0.0  # the last reply
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
        """Count a call of so many tokens, one batch, from when it leaves to its reply, error or cancellation."""
        pool, batch = self.pool, object()
        begun_s = now_s if self.calls < self.places else self.line.last_end_s(now_s)
        if self.calls < self.places:
            pool.busy += 1
        self.calls += 1
        self._called_tokens += tokens
        pace, hop_ms = pool.contention.at(pool.busy)
        end_s = begun_s + (pace * batches_ms(self.profile, tokens, texts=1) + hop_ms) / 1000
        self.line.begin(batch, end_s)
        pool.line.begin(batch, end_s)
        try:
            yield
        finally:
            self.line.end(batch)
            pool.line.end(batch)
            self.calls -= 1
            self._called_tokens -= tokens
            if self.calls < self.places:
                pool.busy -= 1

    def work_ms(self, tokens: int, *, texts: float = 1) -> float:
        """See `work_ms`."""
        return work_ms(self.fit, tokens, texts=texts)

    def can_make_it(self, tokens: int, *, left_ms: float) -> bool:
        """Whether a text may still be in time, were it sent now."""
        alone_ms = self.pool.contention.least_pace * batches_ms(self.profile, tokens, texts=1)
        return can_make_it(left_ms, alone_ms=alone_ms)

    def wait_in_line(self, tokens: int, *, place_ms: float, now_s: float) -> Waiting:
        """A text waits here from now on, until `Waiting.leave`."""
        took_ms = self.work_ms(tokens)
        turn = turn_s(now_s, place_ms=place_ms, work_ms=took_ms)
        lines = (self.line, self.pool.line)
        for line in lines:
            line.add(turn, took_ms)
        return Waiting(lines, turn, took_ms)

    def arrived(self, tokens: int, *, now_s: float, texts: int = 1, place_ms: float = 0.0) -> None:
        """Take a request that was let in into the rates at which tokens and work arrive."""
        fade = math.exp((self._rate_s - now_s) / RATE_WINDOW_S)
        self._rate = self._rate * fade + tokens / RATE_WINDOW_S
        self._rate_s = now_s
        took_ms = self.work_ms(tokens, texts=texts)
        turn_ms = turn_after_ms(place_ms=place_ms, work_ms=took_ms / texts)
        self.pool.came(took_ms, turn_ms=turn_ms, now_s=now_s)

    def saw(self, state: ReplicaState, *, now_s: float) -> None:
        """A reply from a replica arrived: one of its batches ended, and its next one began."""
        known = self._seen.get(state.replica)
        self._seen[state.replica] = (now_s, state)
        self._seen_s = now_s
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
        if now_s > self._forgets_s:
            self.forget(now_s)
        return self._counted

    def forget(self, now_s: float) -> None:
        """Count no longer who has been silent for too long."""
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
        self._set_count(max(1, len(self._seen)))
        first_s = min((seen_s for seen_s, _ in self._seen.values()), default=math.inf)
        self._forgets_s = first_s + REPLICA_FORGOTTEN_AFTER_S
        if self._seen:
            profiles = [state.measured or self._promised for _, state in self._seen.values()]
            self.profile = max(profiles, key=lambda p: p.fitted_ms(TYPICAL_TOKENS))
            self.cost_ms, self.fit = self.profile.cost_ms, fit_of(self.profile)

    def _set_count(self, count: int) -> None:
        places = count * self.streams
        self.pool.busy += min(self.calls, places) - min(self.calls, self.places)
        self._counted, self.places = count, places
        hosts = {state.host for _, state in self._seen.values()}
        self.pool.heard(self._variant, hosts, places=places)

    def starts_at_once(self, now_s: float) -> bool:
        """Whether a text that is sent now runs now. What waits while cores are idle waits for a place of its own."""
        pool = self.pool
        return (
            self.calls < self.places
            and (pool.busy < pool.cores or not pool.is_shared)
            and self.others(now_s) < 1
        )

    def others(self, now_s: float) -> float:
        """Tokens that other routers have queued here."""
        if now_s > self._forgets_s:
            self.forget(now_s)
        if not self._others_tokens:
            return 0.0
        return self._others_tokens * math.exp((self._seen_s - now_s) / OTHERS_FADE_S)

    def wait_ms(self, turn_s: float, *, now_s: float, pace: float, grows: bool) -> float:
        """How long a text with this turn would wait.

        Args:
            turn_s: of the text; inf for the last of all.
            now_s: when.
            pace: how many times longer batches take than their profiles say.
            grows: whether to reckon with those who come meanwhile and have an earlier turn.
        """
        pool, places, wait_ms = self.pool, self.places, 0.0
        others_ms = self.others(now_s) * self.fit[1] if self._others_tokens else 0.0
        load = pace * pool.inflow(now_s) if grows else 0.0
        turns_ms = (turn_s - now_s) * 1000
        if pool.is_shared and (pool.busy >= pool.cores or self.calls < self.places):
            line, width = pool.line, pool.width
            ahead_ms = (line.work_ms if turn_s == math.inf else line.ahead_ms(turn_s)) + others_ms
            wait_ms = line.wait_ms(pace * ahead_ms, now_s=now_s, width=width)
            wait_ms = self._grown_ms(wait_ms, load=load, turns_ms=turns_ms)
            if places >= width:
                return wait_ms
        if pool.is_shared:
            load *= pool.width / places
        line = self.line
        ahead_ms = (line.work_ms if turn_s == math.inf else line.ahead_ms(turn_s)) + others_ms
        own_ms = line.wait_ms(pace * ahead_ms, now_s=now_s, width=places)
        own_ms = self._grown_ms(own_ms, load=load, turns_ms=turns_ms)
        return max(wait_ms, own_ms)

    def _grown_ms(self, wait_ms: float, *, load: float, turns_ms: float) -> float:
        """A wait with those who come meanwhile; for whom all go first, a first approximation."""
        if not load:
            return wait_ms
        if turns_ms == math.inf:
            return wait_ms * (1 + (load if load < MOST_LOAD else MOST_LOAD))
        typical_ms = self.pool.turns_ms
        return with_overtakers_ms(wait_ms, load=load, turns_ms=turns_ms, typical_ms=typical_ms)

    def rate(self, now_s: float) -> float:
        """Tokens that arrive at each replica a millisecond."""
        fade = math.exp((self._rate_s - now_s) / RATE_WINDOW_S)
        return self._rate * fade / (1000 * self._counted)
