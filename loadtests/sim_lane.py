"""All that a simulated router sends to one variant; mirrors `serve_app/dispatch.py`.

Texts wait for their turns while calls are in flight; what nobody waits for is not sent, or is cancelled.
Under policies that know of no turns they are those that the product's would have.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from loadtests.sim_replica import Attempt, Call, Replica
from loadtests.sim_types import Fit
from serve_app.dispatch import LOOKED_AT
from serve_app.manifest import Profile
from serve_app.policy.batching import may_leave, next_batch
from serve_app.policy.forecast import fit_of
from serve_app.policy.load import work_ms
from serve_app.policy.turns import PLACES_MS, can_make_it, place_of, turn_s

if TYPE_CHECKING:
    from loadtests.sim_router import Router


_turn_s = attrgetter("turn_s")


class Lane:
    """Everything one router sends to one variant."""

    def __init__(
        self,
        router: Router,
        variant: str,
        profile: Profile,
        replicas: Sequence[Replica],
        *,
        takes: Fit,
    ) -> None:
        self._router = router
        self._variant = variant
        self._profile = profile
        self._takes = takes
        self._replicas = replicas
        self._sent_tokens = dict.fromkeys([replica.name for replica in replicas], 0)
        self._turn = 0
        self._queue: list[Attempt] = []  # by turn
        self._calls = 0
        self.inflight_tokens = 0
        self.inflight_requests = 0

    def hold(self, attempt: Attempt) -> None:
        """Count an admitted request."""
        self.inflight_tokens += attempt.request.tokens
        self.inflight_requests += 1

    def give_back(self, attempt: Attempt) -> None:
        """It ended."""
        self.inflight_tokens -= attempt.request.tokens
        self.inflight_requests -= 1
        _leave_line(attempt)

    def add(self, attempt: Attempt) -> None:
        """A request's text waits for its turn, which may be now."""
        router, request = self._router, attempt.request
        now_s, watcher = router.simulation.now_s, router.watcher
        if watcher is not None:
            attempt.waiting = watcher.wait_in_line(request, self._variant, now_s=now_s)
            attempt.turn_s = attempt.waiting.turn_s
        else:
            place = place_of((attempt.deadline_s - now_s) * 1000)
            took_ms = work_ms(fit_of(self._profile), request.tokens)
            attempt.turn_s = turn_s(now_s, place_ms=PLACES_MS[place], work_ms=took_ms)
        insort(self._queue, attempt, key=_turn_s)
        router.pump()

    def may_send(self) -> bool:
        """Whether something waits here for which a call is free."""
        queue = self._queue
        while queue and not self._is_worth_it(queue[0]):
            queue.pop(0)
        if not queue:
            return False
        router = self._router
        return may_leave(
            self._calls,
            replicas=self._up(),
            streams=router.machine.streams,
            busy=router.busy_engines(),
            cores=router.machine.cores,
        )

    def next_turn_s(self) -> float:
        """The first in line; one waits at least."""
        return self._queue[0].turn_s

    def send_next(self) -> None:
        """One call."""
        if parts := self._take():
            self._send(parts)

    def _is_worth_it(self, attempt: Attempt) -> bool:
        """Whether it shall be sent; what cannot make it any more waits for nothing but its deadline."""
        if not attempt.ended and self._can_make_it(attempt):
            return True
        _leave_line(attempt)
        return False

    def _can_make_it(self, attempt: Attempt) -> bool:
        """As the product's policy knows; under others, as it is."""
        router, tokens = self._router, attempt.request.tokens
        left_ms = (attempt.deadline_s - router.simulation.now_s) * 1000
        if router.watcher is not None:
            return router.watcher.can_make_it(self._variant, tokens, left_ms=left_ms)
        return can_make_it(left_ms, alone_ms=self._takes.ms(tokens))

    @property
    def busy(self) -> int:
        """Batches that its replicas run, as far as the router knows."""
        return min(self._calls, self._up() * self._router.machine.streams)

    def _up(self) -> int:
        if len(self._replicas) == 1:
            return 1
        now_s = self._router.simulation.now_s
        return max(1, sum([replica.ready_s <= now_s for replica in self._replicas]))

    def _take(self) -> list[Attempt]:
        """A batch around the first in line, without those that nobody waits for."""
        near = self._queue[:LOOKED_AT]
        taken = next_batch([a.request.tokens for a in near], self._profile.batch_tokens)
        parts = [near[i] for i in taken]
        chosen = set(map(id, parts))
        self._queue = [attempt for attempt in self._queue if id(attempt) not in chosen]
        parts = [attempt for attempt in parts if self._is_worth_it(attempt)]
        for attempt in parts:
            _leave_line(attempt)
        return parts

    def _send(self, parts: list[Attempt]) -> None:
        self._calls += 1
        router = self._router
        call = Call(self, parts, router.simulation.now_s, len(parts))
        for part in parts:
            part.call = call
        if router.watcher is not None:
            call.left = router.watcher.call_left(self._variant, call.tokens, now_s=call.sent_s)
        router.work(router.machine.call_ms / 2, self._leave, call)

    def cancel_if_unwanted(self, call: Call | None) -> None:
        """A call that nobody waits for any more is cancelled, wherever it is."""
        if call is None or call.ended or not all(part.ended for part in call.parts):
            return
        self._end(call)
        self._router.pump()

    def _end(self, call: Call) -> None:
        call.ended = True
        self._calls -= 1
        if call.replica is not None:
            call.replica.calls -= 1
            self._sent_tokens[call.replica.name] -= call.tokens
        if self._router.watcher is not None:
            self._router.watcher.call_ended(call.left)

    def _leave(self, call: Call) -> None:
        if call.ended:
            return
        simulation, machine = self._router.simulation, self._router.machine
        replica = call.replica = self._pick()
        replica.calls += 1
        self._sent_tokens[replica.name] += call.tokens
        simulation.at(simulation.now_s + machine.hop_ms / 2000, replica.accept, call)

    def _pick(self) -> Replica:
        """The one that has the fewest of this router's tokens, of several in turn; as `serve_app/direct.py`."""
        if len(self._replicas) == 1:
            return self._replicas[0]
        now_s = self._router.simulation.now_s
        up = [replica for replica in self._replicas if replica.ready_s <= now_s]
        if len(up) <= 1:
            return min(self._replicas, key=lambda replica: replica.ready_s)
        self._turn += 1
        start = self._turn % len(up)
        in_turn = [*up[start:], *up[:start]]
        return min(in_turn, key=lambda replica: self._sent_tokens[replica.name])

    def reply(self, call: Call) -> None:
        """A call leaves its replica."""
        simulation, machine = self._router.simulation, self._router.machine
        simulation.at(simulation.now_s + machine.hop_ms / 2000, self._reply_arrives, call)

    def _reply_arrives(self, call: Call) -> None:
        self._router.work(self._router.machine.call_ms / 2, self._replied, call)

    def _replied(self, call: Call) -> None:
        if call.ended:
            return
        self._end(call)
        router = self._router
        if router.watcher is not None:
            self._tell(call, router.simulation.now_s)
        for part in call.parts:
            if not part.ended:
                router.answer(part)
        self._router.pump()

    def _tell(self, call: Call, now_s: float) -> None:
        hop_ms = (now_s - call.sent_s) * 1000 - call.queue_ms - call.inference_ms
        if self._router.stale_s:
            self._router.simulation.at(now_s + self._router.stale_s, self._learn, (call, hop_ms))
        else:
            self._learn((call, hop_ms))

    def _learn(self, learned: tuple[Call, float]) -> None:
        call, hop_ms = learned
        watcher, now_s = self._router.watcher, self._router.simulation.now_s
        if watcher is not None and call.state is not None:
            watcher.saw(call.left, call.state, hop_ms=hop_ms, now_s=now_s)


def _leave_line(attempt: Attempt) -> None:
    """It waits for no turn any more."""
    if attempt.waiting is not None:
        attempt.waiting.leave()
        attempt.waiting = None
