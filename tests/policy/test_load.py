"""What a router knows of one variant's load: its own tokens in flight, and the replicas it heard of."""

import asyncio
import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.manifest import Profile
from serve_app.policy.load import REPLICA_FORGOTTEN_AFTER_S, Load, ReplicaState, VariantLoad

HELD = st.lists(st.tuples(st.integers(1, 10_000), st.booleans()), min_size=1, max_size=8)


def _state(
    replica: str = "a", queued_tokens: int = 0, measured: Profile | None = None
) -> ReplicaState:
    return ReplicaState(replica=replica, queued_tokens=queued_tokens, measured=measured)


def _profile(per_token_ms: float, base_ms: float = 0.0) -> Profile:
    return Profile(
        hardware="a test",
        device="cpu",
        threads=1,
        base_ms=base_ms,
        per_token_ms=per_token_ms,
        spread=1.0,
        batch_tokens=64,
        grid=(),
        load_ms=0.0,
        resident_bytes=0,
    )


@given(HELD, st.randoms(use_true_random=False))
def test_tokens_in_flight_return_to_zero(
    held: list[tuple[int, bool]], order: random.Random
) -> None:
    """Whatever ends first and however it ends, each request gives back exactly what it took."""
    load = VariantLoad()
    open_holds = []
    for tokens, fails in held:
        hold = load.hold(tokens)
        hold.__enter__()
        open_holds.append((hold, fails))
    assert load.inflight_tokens == sum(tokens for tokens, _ in held)
    order.shuffle(open_holds)
    for hold, fails in open_holds:
        error = ValueError("a failed request") if fails else None
        with contextlib.suppress(ValueError):
            hold.__exit__(type(error) if error else None, error, None)
    assert load.inflight_tokens == 0


def test_a_cancelled_request_gives_its_tokens_back() -> None:
    """Cancellation is no Exception, and counts as an end all the same."""
    load = VariantLoad()
    with pytest.raises(asyncio.CancelledError), load.hold(5):
        raise asyncio.CancelledError
    assert load.inflight_tokens == 0


def test_a_replica_counts_once_with_its_newest_state() -> None:
    """Two replies of one replica are one replica, as it described itself last."""
    load = VariantLoad()
    load.saw(_state("a", 7), hop_ms=1, now_s=0)
    load.saw(_state("b", 1), hop_ms=1, now_s=1)
    load.saw(_state("a", 3), hop_ms=1, now_s=2)
    assert sorted(load.replicas(now_s=2), key=lambda r: r.replica) == [
        _state("a", 3),
        _state("b", 1),
    ]


def test_a_silent_replica_is_forgotten() -> None:
    """A replica counts up to the limit of silence, not beyond it; another's news do not help it."""
    load = VariantLoad()
    load.saw(_state("a"), hop_ms=1, now_s=100)
    load.saw(_state("b"), hop_ms=1, now_s=110)
    at_limit_s = 100 + REPLICA_FORGOTTEN_AFTER_S
    assert len(load.replicas(now_s=at_limit_s)) == 2
    assert load.replicas(now_s=at_limit_s + 0.001) == [_state("b")]


def test_after_a_death_all_replicas_must_show_themselves_again() -> None:
    """Nobody says which replica died, so none is counted until it is heard of."""
    load = VariantLoad()
    load.saw(_state("a"), hop_ms=1, now_s=0)
    load.lost()
    assert load.replicas(now_s=0) == []


def test_the_view_for_the_forecast_has_one_replica_at_least() -> None:
    """A ready variant that nobody has heard of lately still has a replica; no division by zero."""
    load = VariantLoad()
    with load.hold(9):
        assert load.at(now_s=0) == Load(inflight_tokens=9, replicas=1, hop_ms=0.0)
    load.saw(_state("a"), hop_ms=1, now_s=0)
    load.saw(_state("b"), hop_ms=1, now_s=0)
    assert load.at(now_s=0).replicas == 2


def test_the_first_forecast_error_counts_whole_and_later_ones_a_tenth() -> None:
    """The error is relative to the prediction, without sign, in an exponentially weighted mean."""
    load = VariantLoad()
    assert load.forecast_error is None
    load.learn(predicted_ms=100, actual_ms=50)
    assert load.forecast_error == pytest.approx(0.5)
    load.learn(predicted_ms=100, actual_ms=450)
    assert load.forecast_error == pytest.approx(0.5 + 0.1 * (3.5 - 0.5))


def test_the_first_hop_counts_whole_and_later_ones_a_tenth() -> None:
    """One outlier moves the hop by a tenth, whichever replica it came from; a change is learned."""
    load = VariantLoad()
    assert load.at(now_s=0).hop_ms == 0
    load.saw(_state("a"), hop_ms=2, now_s=0)
    assert load.at(now_s=0).hop_ms == 2
    load.saw(_state("b"), hop_ms=12, now_s=0)
    assert load.at(now_s=0).hop_ms == pytest.approx(3)
    for _ in range(100):
        load.saw(_state("a"), hop_ms=12, now_s=0)
    assert load.at(now_s=0).hop_ms == pytest.approx(12, abs=0.01)


PROMISED = _profile(2.0)
SLOW, SLOWER_WHEN_SHORT, FAST = _profile(5.0), _profile(1.0, base_ms=200), _profile(0.5)


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
    measured: list[Profile | None], expected: Profile
) -> None:
    """A request may meet any replica; one that measured nothing is as the manifest promises."""
    load = VariantLoad()
    for i, profile in enumerate(measured):
        load.saw(_state(f"r{i}", measured=profile), hop_ms=1, now_s=0)
    assert load.profile(PROMISED, now_s=0) is expected


def test_a_replica_that_was_replaced_by_a_faster_one_no_longer_counts() -> None:
    """Its profile is forgotten with it."""
    load = VariantLoad()
    load.saw(_state("a", measured=SLOW), hop_ms=1, now_s=0)
    load.saw(_state("b", measured=FAST), hop_ms=1, now_s=REPLICA_FORGOTTEN_AFTER_S)
    assert load.profile(PROMISED, now_s=REPLICA_FORGOTTEN_AFTER_S) is SLOW
    assert load.profile(PROMISED, now_s=REPLICA_FORGOTTEN_AFTER_S + 1) is FAST


@pytest.mark.parametrize("died", [False, True])
def test_a_pause_or_a_death_does_not_bring_the_promise_back(*, died: bool) -> None:
    """With nobody heard of lately the last profile holds: the hardware is likely still the same."""
    load = VariantLoad()
    load.saw(_state("a", measured=SLOW), hop_ms=1, now_s=0)
    if died:
        load.lost()
    assert load.profile(PROMISED, now_s=10 * REPLICA_FORGOTTEN_AFTER_S) is SLOW
