"""What a router knows of one variant's load: its own tokens in flight, and the replicas it heard of."""

import asyncio
import contextlib
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.manifest import Profile
from serve_app.policy.load import (
    OTHERS_FADE_S,
    RATE_WINDOW_S,
    REPLICA_FORGOTTEN_AFTER_S,
    VariantLoad,
)
from serve_app.policy.pool import Pool
from serve_app.policy.replica_state import ReplicaState
from tests.policy.profiles import profile_of

HELD = st.lists(st.tuples(st.integers(1, 10_000), st.booleans()), min_size=1, max_size=8)
PROMISED = profile_of(0, 2.0)
SLOW, SLOWER_WHEN_SHORT, FAST = profile_of(0, 5.0), profile_of(200, 1.0), profile_of(0, 0.5)


def _state(
    replica: str = "a", queued_tokens: int = 0, measured: Profile | None = None
) -> ReplicaState:
    return ReplicaState(replica=replica, queued_tokens=queued_tokens, measured=measured)


def _wait_ms(load: VariantLoad, now_s: float = 0.0, *, turn_s: float = 1e6) -> float | None:
    """What a text with the last of all turns would wait; None where it starts at once."""
    if load.starts_at_once(now_s):
        return None
    return load.wait_ms(turn_s, now_s=now_s, pace=1.0, grows=False)


@pytest.fixture
def load() -> VariantLoad:
    return VariantLoad(PROMISED)


@given(HELD, st.randoms(use_true_random=False))
def test_tokens_in_flight_return_to_zero(
    held: list[tuple[int, bool]], order: random.Random
) -> None:
    """Whatever ends first and however, each request and call gives back exactly what it took."""
    load = VariantLoad(PROMISED)
    open_holds = []
    for tokens, fails in held:
        for hold in (load.hold(tokens), load.call(tokens, now_s=0)):
            hold.__enter__()
            open_holds.append((hold, fails))
    assert load.inflight_tokens == sum(tokens for tokens, _ in held)
    assert load.calls == len(held)
    order.shuffle(open_holds)
    for hold, fails in open_holds:
        error = ValueError("a failed request") if fails else None
        with contextlib.suppress(ValueError):
            hold.__exit__(type(error) if error else None, error, None)
    assert (load.inflight_tokens, load.calls, load._called_tokens) == (0, 0, 0)


def test_a_cancelled_request_gives_its_tokens_back(load: VariantLoad) -> None:
    """Cancellation is no Exception, and counts as an end all the same."""
    with pytest.raises(asyncio.CancelledError), load.hold(5), load.call(5, now_s=0):
        raise asyncio.CancelledError
    assert (load.inflight_tokens, load.calls) == (0, 0)


def test_a_replica_counts_once_with_its_newest_state(load: VariantLoad) -> None:
    """Two replies of one replica are one replica, as it described itself last."""
    load.saw(_state("a", 7), now_s=0)
    load.saw(_state("b", 1), now_s=1)
    load.saw(_state("a", 3), now_s=2)
    found = sorted(load.replicas(now_s=2), key=lambda r: r.replica)
    assert found == [_state("a", 3), _state("b", 1)]
    assert load.count(2) == 2


def test_a_silent_replica_is_forgotten(load: VariantLoad) -> None:
    """A replica counts up to the limit of silence, not beyond it; another's news do not help it."""
    load.saw(_state("a"), now_s=100)
    load.saw(_state("b"), now_s=110)
    at_limit_s = 100 + REPLICA_FORGOTTEN_AFTER_S
    assert load.count(at_limit_s) == 2
    assert load.count(at_limit_s + 0.001) == 1
    assert load.replicas(now_s=at_limit_s + 0.001) == [_state("b")]


def test_after_a_death_all_replicas_must_show_themselves_again(load: VariantLoad) -> None:
    """Nobody says which replica died, so none is counted until it is heard of."""
    load.saw(_state("a", 500), now_s=0)
    load.lost()
    assert load.replicas(now_s=0) == []
    assert load.count(0) == 1
    assert _wait_ms(load) is None


def test_a_free_place_means_no_queue(load: VariantLoad) -> None:
    """A request waits only where every place has a call; a ready variant has one at least."""
    assert _wait_ms(load) is None
    with load.call(9, now_s=0):
        assert _wait_ms(load) == pytest.approx(9 * 2.0)
        load.saw(_state("a"), now_s=0)
        load.saw(_state("b"), now_s=0)
        assert _wait_ms(load) is None
        with load.call(5, now_s=0):
            assert _wait_ms(load) == pytest.approx(5 * 2.0)


def test_a_call_at_the_door_begins_when_the_one_before_it_ends(load: VariantLoad) -> None:
    """Of one stream: two calls are waited for one after the other."""
    with load.call(9, now_s=0), load.call(5, now_s=0):
        waiting = load.wait_in_line(4, place_ms=0, now_s=0)
        assert _wait_ms(load) == pytest.approx(18 + (18 + 10) + 4 * 2.0)
        waiting.leave()


@pytest.mark.parametrize("replicas", [1, 2, 5])
def test_work_ahead_is_shared_by_the_replicas(load: VariantLoad, replicas: int) -> None:
    """What waits, and what arrives, is divided among those that are up."""
    for i in range(replicas):
        load.saw(_state(f"r{i}"), now_s=0)
    load.arrived(50, now_s=0)
    with contextlib.ExitStack() as stack:
        for _ in range(replicas):
            stack.enter_context(load.call(10, now_s=0))
        for _ in range(6):
            load.wait_in_line(50, place_ms=0, now_s=0)
        assert _wait_ms(load) == pytest.approx(20 + 6 * 50 * 2.0 / replicas)
        assert load.rate(0) == pytest.approx(50 / RATE_WINDOW_S / 1000 / replicas)


def test_those_with_a_later_turn_are_not_waited_for(load: VariantLoad) -> None:
    """Work counts from its turn on, in the variant's own line and in its pool's; who left counts no more."""
    pool = Pool(cores=1.0)
    load, other = VariantLoad(PROMISED, pool, variant="a"), VariantLoad(PROMISED, pool, variant="b")
    with load.call(10, now_s=0):
        first = other.wait_in_line(30, place_ms=0, now_s=0)
        last = other.wait_in_line(30, place_ms=1000, now_s=0)
        between_s = (first.turn_s + last.turn_s) / 2
        for one in (load, other):
            assert _wait_ms(one, turn_s=between_s) == pytest.approx(20 + 60)
            assert _wait_ms(one) == pytest.approx(20 + 120)
        last.leave()
        last.leave()
        assert _wait_ms(load) == pytest.approx(20 + 60)
        first.leave()
        assert _wait_ms(load) == pytest.approx(20)
    assert len(pool.line) == len(load.line) == len(other.line) == 0


def test_a_variant_with_fewer_streams_than_cores_waits_for_its_own(load: VariantLoad) -> None:
    """Idle cores do not help it while its one stream is busy."""
    pool = Pool(cores=4.0)
    load = VariantLoad(PROMISED, pool, streams=1)
    wide = VariantLoad(PROMISED, pool, variant="b", streams=4)
    with load.call(10, now_s=0):
        load.wait_in_line(30, place_ms=0, now_s=0)
        assert _wait_ms(load) == pytest.approx(20 + 60)
        assert wide.starts_at_once(0)


def test_with_those_who_come_meanwhile_a_wait_grows_by_what_is_let_in() -> None:
    """Work that comes as fast as it is done doubles the wait of the last of all; what is refused adds nothing."""
    pool = Pool(cores=1.0)
    load = VariantLoad(PROMISED, pool)
    with load.call(10, now_s=0):
        pool.asked(9e9, now_s=0)
        assert load.wait_ms(math.inf, now_s=0, pace=1.0, grows=True) == 20
        for at_s in range(-100, 0):
            load.arrived(5, now_s=at_s / 100)
        found_ms = load.wait_ms(math.inf, now_s=0, pace=1.0, grows=True)
        assert found_ms == pytest.approx(40, rel=0.05)
        soon_ms = load.wait_ms(0.001, now_s=0, pace=1.0, grows=True)
        assert 20 < soon_ms < 21


def test_what_others_queued_is_seen_and_fades(load: VariantLoad) -> None:
    """A reply tells what the replica has queued beyond my own calls; with its age it is history."""
    with load.call(40, now_s=0):
        load.saw(_state("a", 100), now_s=0)
    assert load.others(0) == pytest.approx(60)
    assert _wait_ms(load) == pytest.approx(60 * 2.0)
    assert load.others(OTHERS_FADE_S) == pytest.approx(60 / math.e)
    assert _wait_ms(load, 10 * OTHERS_FADE_S) is None


def test_a_batch_that_is_late_is_late_for_as_long_again(load: VariantLoad) -> None:
    """Its rest shrinks to its expected end, and grows after it."""
    with load.call(9, now_s=1):
        for now_s, left_ms in ((1.0, 18), (1.010, 8), (1.018, 0), (1.028, 10)):
            assert _wait_ms(load, now_s) == pytest.approx(left_ms, abs=1e-6)


def test_busy_replicas_are_no_more_than_there_are() -> None:
    """Two calls at one stream are one batch; as replicas show themselves or die, it is counted anew."""
    engines = Pool(cores=8.0)
    load, other = (VariantLoad(PROMISED, engines, variant=v) for v in "ab")
    with load.call(9, now_s=0), load.call(9, now_s=0):
        assert engines.busy == 1
        load.saw(_state("a"), now_s=0)
        load.saw(_state("b"), now_s=0)
        assert engines.busy == 2
        with other.call(9, now_s=0):
            assert engines.busy == 3
        load.lost()
        assert engines.busy == 1
    assert engines.busy == 0


def test_a_replica_is_busy_with_as_many_batches_as_it_has_streams() -> None:
    """Each call is a batch while a place is free; those beyond wait for one."""
    engines = Pool(cores=8.0)
    load = VariantLoad(PROMISED, engines, streams=2)
    with load.call(9, now_s=0):
        assert (engines.busy, load.places) == (1, 2)
        with load.call(9, now_s=0), load.call(9, now_s=0):
            assert engines.busy == 2
            load.saw(_state("a"), now_s=0)
            load.saw(_state("b"), now_s=0)
            assert (engines.busy, load.places) == (3, 4)
            load.lost()
            assert engines.busy == 2
        assert engines.busy == 1
    assert engines.busy == 0


def test_a_place_is_free_only_while_cores_are_idle() -> None:
    """A second batch starts beside the first where there is room, and waits for it where there is none."""
    for cores, waits_ms in ((2.0, None), (1.0, 18)):
        load = VariantLoad(PROMISED, Pool(cores=cores), streams=2)
        with load.call(9, now_s=0):
            assert _wait_ms(load) == (waits_ms and pytest.approx(waits_ms))


REPLICA_EVENTS = st.lists(
    st.sampled_from(["call", "end", "a", "b", "c", "lost", "silence"]), max_size=30
)


@given(REPLICA_EVENTS, st.integers(1, 3))
def test_busy_replicas_are_counted_through_any_events(events: list[str], streams: int) -> None:
    """Always as many as have a call each: the lesser of calls and places."""
    engines, now_s, calls = Pool(cores=8.0), 0.0, []
    load = VariantLoad(PROMISED, engines, streams=streams)
    for event in events:
        now_s += 1
        if event == "call":
            calls.append(load.call(1, now_s=now_s))
            calls[-1].__enter__()
        elif event == "end" and calls:
            calls.pop(0).__exit__(None, None, None)
        elif event == "lost":
            load.lost()
        elif event == "silence":
            now_s += 2 * REPLICA_FORGOTTEN_AFTER_S
            load.count(now_s)
        elif event in "abc":
            load.saw(_state(event), now_s=now_s)
        assert engines.busy == min(load.calls, streams * load.count(now_s))


def test_the_first_forecast_error_counts_whole_and_later_ones_a_tenth(load: VariantLoad) -> None:
    """The error is relative to the prediction, without sign, in an exponentially weighted mean."""
    assert load.forecast_error is None
    load.learn(predicted_ms=100, actual_ms=50)
    assert load.forecast_error == pytest.approx(0.5)
    load.learn(predicted_ms=100, actual_ms=450)
    assert load.forecast_error == pytest.approx(0.5 + 0.1 * (3.5 - 0.5))


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ([], PROMISED),
        ([None], PROMISED),
        ([SLOW], SLOW),
        ([FAST], FAST),
        ([FAST, SLOW], SLOW),
        ([FAST, None], PROMISED),
        ([SLOW, None], SLOW),
        ([SLOW, SLOWER_WHEN_SHORT], SLOW),
    ],
)
def test_the_slowest_replica_sets_the_profile(
    load: VariantLoad, measured: list[Profile | None], expected: Profile
) -> None:
    """A request may meet any replica; one that measured nothing is as the manifest promises."""
    for i, profile in enumerate(measured):
        load.saw(_state(f"r{i}", measured=profile), now_s=0)
    assert load.profile is expected
    assert load.cost_ms == expected.cost_ms


def test_a_replica_that_was_replaced_by_a_faster_one_no_longer_counts(load: VariantLoad) -> None:
    """Its profile is forgotten with it."""
    load.saw(_state("a", measured=SLOW), now_s=0)
    load.saw(_state("b", measured=FAST), now_s=REPLICA_FORGOTTEN_AFTER_S)
    assert load.profile is SLOW
    load.count(REPLICA_FORGOTTEN_AFTER_S + 1)
    assert load.profile is FAST


@pytest.mark.parametrize("died", [False, True])
def test_a_pause_or_a_death_does_not_bring_the_promise_back(
    load: VariantLoad, *, died: bool
) -> None:
    """With nobody heard of lately the last profile holds: the hardware is likely still the same."""
    load.saw(_state("a", measured=SLOW), now_s=0)
    if died:
        load.lost()
    load.count(10 * REPLICA_FORGOTTEN_AFTER_S)
    assert load.profile is SLOW


def test_what_can_be_in_time_follows_how_fast_engines_are_here(load: VariantLoad) -> None:
    """A profile that says twice of what texts take must not have them dropped."""
    assert not load.can_make_it(10, left_ms=15)
    assert load.can_make_it(10, left_ms=17)
    for _ in range(200):
        load.pool.contention.learn(1, pace=0.5, hop_ms=1.0)
    assert load.can_make_it(10, left_ms=9)
    assert not load.can_make_it(10, left_ms=7)
