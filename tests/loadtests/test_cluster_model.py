"""Requests on a simulated cluster: their times by hand, and that each ends once and frees all it took."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from loadtests.cluster_model import Cluster, Fate, Habits, Outcome, Setup
from loadtests.product_policy import BrainPolicy
from loadtests.sim_capacity import Only, sustained
from loadtests.sim_types import Machine, Policy, SimRequest, View
from loadtests.sim_workload import assumed_pools, in_bursts, requests_at, steady
from tests.loadtests.sim_machines import MACHINE, facts, request

ALONE = Machine(
    cores=8, variants=(facts(),), router_ms=1.0, call_ms=2.0, replica_call_ms=0.5, hop_ms=0.4
)


def _always(_machine: Machine, _rng: random.Random) -> Policy:
    return Only("only")


def _brain(machine: Machine, rng: random.Random) -> BrainPolicy:
    return BrainPolicy(machine, rng)


def test_a_request_alone_takes_the_sum_of_its_parts() -> None:
    """Router, call out and back, hop, replica, and one batch of its own."""
    fate = Cluster(ALONE, _always, seed=0).run([request(0, 0.0, tokens=50)])
    batch_ms = 2.0 + 0.1 * 50
    assert fate.latencies_ms == pytest.approx([1.0 + 2.0 + 0.4 + 0.5 + batch_ms])


def test_the_way_to_the_router_and_back_is_the_clients_time() -> None:
    """Latency outside of the router counts for the client, and the router cannot see it."""
    machine = replace(ALONE, outside_ms=6.0)
    inside_ms = 1.0 + 2.0 + 0.4 + 0.5 + 2.0 + 0.1 * 50
    enough, short = request(0, 0.0, budget_ms=17.0), request(1, 1.0, budget_ms=16.0)
    fate = Cluster(machine, _always, seed=0).run([enough, short])
    assert fate.latencies_ms == pytest.approx([6.0 + inside_ms, 0.0])
    assert list(fate.outcomes) == [Outcome.ON_TIME, Outcome.LATE]


def test_the_way_spreads_as_measured() -> None:
    """Half the latency outside at the median, and its p95 as many times that as was measured."""
    machine, rng = replace(ALONE, outside_ms=6.0, outside_spread=3.0), random.Random(0)  # noqa: S311
    ways = sorted(machine.way_ms(rng) for _ in range(20_000))
    assert ways[10_000] == pytest.approx(3.0, rel=0.05)
    assert ways[19_000] == pytest.approx(9.0, rel=0.1)


def test_engines_in_service_take_their_own_time() -> None:
    """A pace beside the profile's stretches each batch, and what replicas tell of it."""
    fate = Cluster(replace(ALONE, engine_pace=1.5), _always, seed=0).run([request(0, 0.0)])
    assert fate.latencies_ms == pytest.approx([1.0 + 2.0 + 0.4 + 0.5 + 1.5 * (2.0 + 0.1 * 50)])


def test_a_host_that_takes_cores_away_makes_some_work_longer() -> None:
    """Stalls come as often and last as long as they were measured, on average."""
    machine, rng = replace(ALONE, stalls_per_s=10.0, stall_ms=4.0), random.Random(0)  # noqa: S311
    drawn = [machine.stalled_ms(20.0, rng) for _ in range(5000)]
    stalls = [ms for ms in drawn if ms]
    assert len(stalls) / len(drawn) == pytest.approx(10.0 * 0.020, rel=0.1)
    assert sum(stalls) / len(stalls) == pytest.approx(4.0, rel=0.1)
    assert ALONE.stalled_ms(1000.0, rng) == 0.0


def test_texts_that_gather_share_a_batch() -> None:
    """While two calls are in flight the third text and the fourth wait, and travel together."""
    machine = Machine(cores=8, variants=(facts(),))
    fate = Cluster(machine, _always, seed=0).run([request(n, 0.0, tokens=30) for n in range(4)])
    single_ms, double_ms = 2.0 + 0.1 * 30, 2.0 + 0.1 * 60
    ends_ms = [single_ms, 2 * single_ms, 2 * single_ms + double_ms, 2 * single_ms + double_ms]
    assert fate.latencies_ms == pytest.approx(ends_ms)


def test_a_replica_runs_as_many_batches_side_by_side_as_it_has_streams() -> None:
    """Of four texts three start at once on cores of their own; the fourth follows the first."""
    machine = Machine(cores=8, streams=3, variants=(facts(),))
    lengths = (30, 40, 50, 60)
    fate = Cluster(machine, _always, seed=0).run(
        [request(n, 0.0, tokens=tokens) for n, tokens in enumerate(lengths)]
    )
    single_ms = [2.0 + 0.1 * tokens for tokens in lengths]
    assert fate.latencies_ms == pytest.approx([*single_ms[:3], single_ms[0] + single_ms[3]])


def test_two_streams_on_one_core_are_not_used() -> None:
    """While no core is idle the texts gather: one batch follows the other, as with one stream."""
    requests = [request(n, 0.0, tokens=30) for n in range(4)]
    found = [
        Cluster(Machine(cores=1, streams=n, variants=(facts(),)), _always, seed=0)
        .run(requests)
        .latencies_ms
        for n in (1, 2)
    ]
    assert found[0] == found[1]


def test_batches_of_one_replica_slow_each_other() -> None:
    """As those of two engines do, while both run."""
    machine = Machine(cores=8, streams=2, variants=(facts(),), together_pace=1.5)
    fate = Cluster(machine, _always, seed=0).run([request(n, 0.0, tokens=30) for n in range(2)])
    assert fate.latencies_ms == pytest.approx([1.5 * 5.0] * 2)


@pytest.mark.parametrize(("cores", "times"), [(2.0, 2.2), (1.0, 1.0)])
def test_two_streams_sustain_twice_as_much_on_two_cores(cores: float, times: float) -> None:
    """And a little more, as short texts pass long ones on the other core; on one core a second is worth nothing."""
    pools = assumed_pools()
    one, two = (
        sustained(Machine(cores=cores, streams=n, variants=(facts(),)), "only", pools, run_s=10.0)
        for n in (1, 2)
    )
    assert two / one == pytest.approx(times, rel=0.1)


@pytest.mark.parametrize(
    ("cores", "took_ms"), [(1.0, [7.0, 14.0]), (1.5, [28 / 3] * 2), (2.0, [7.0] * 2)]
)
def test_engines_share_the_cores(cores: float, took_ms: list[float]) -> None:
    """Variants that share a host slow each other; and no more batches run than there are cores, rounded up."""
    variants = facts("even"), facts("odd")

    class Alternate(Only):
        def decide(self, request: SimRequest, _view: View, *, now_s: float) -> str | None:
            del now_s
            return ("even", "odd")[request.number % 2]

    machine = Machine(cores=cores, variants=variants)
    fate = Cluster(machine, lambda _machine, _rng: Alternate(""), seed=0).run(
        [request(0, 0.0), request(1, 0.0)]
    )
    assert fate.latencies_ms == pytest.approx(took_ms)


def test_what_cannot_be_in_time_leaves_the_cores_to_others() -> None:
    """A text that takes 52 ms is not computed for a budget of 10."""
    computed: list[int] = []
    machine = Machine(cores=8, variants=(facts(per_token_ms=1.0),))
    cluster = Cluster(machine, _always, seed=0, computed=lambda r: computed.append(r.number))
    fate = cluster.run([request(0, 0.0, budget_ms=10), request(1, 0.0)])
    assert list(fate.outcomes) == [Outcome.LATE, Outcome.ON_TIME]
    assert computed == [1]


def test_short_texts_go_first() -> None:
    """Of those that wait for the only core, whichever came first."""
    machine = Machine(cores=1, variants=(facts(per_token_ms=1.0, batch_tokens=20),))
    fate = Cluster(machine, _always, seed=0).run(
        [request(0, 0.0), request(1, 0.001), request(2, 0.002, tokens=10)]
    )
    assert fate.latencies_ms == pytest.approx([52.0, 52 + 12 + 52 - 1, 52 + 12 - 2])


def test_a_deadline_drops_what_has_not_started() -> None:
    """The second request leaves at its budget, and the engine never computes its text."""
    computed: list[int] = []
    machine = Machine(cores=8, variants=(facts(per_token_ms=1.0),))
    cluster = Cluster(machine, _always, seed=0, computed=lambda r: computed.append(r.number))
    fate = cluster.run([request(0, 0.0, budget_ms=100), request(1, 0.001, budget_ms=30)])
    assert list(fate.outcomes) == [Outcome.ON_TIME, Outcome.LATE]
    assert computed == [0]


def test_a_call_that_nobody_waits_for_frees_its_place() -> None:
    """Two calls fill the lane; when both their clients are gone, the third text is sent at once."""
    machine = Machine(cores=8, variants=(facts(per_token_ms=1.0),))
    computed: list[int] = []
    cluster = Cluster(machine, _always, seed=0, computed=lambda r: computed.append(r.number))
    fate = cluster.run(
        [request(0, 0.0, budget_ms=50), request(1, 0.0, budget_ms=50), request(2, 0.0)]
    )
    assert list(fate.outcomes) == [Outcome.LATE, Outcome.LATE, Outcome.ON_TIME]
    assert computed == [0, 2]
    assert fate.latencies_ms[2] == pytest.approx(2 * 52.0)


def _busy(seed: int = 0) -> Sequence[SimRequest]:
    return requests_at(in_bursts(200.0, 10.0, seed), assumed_pools(), seed=seed)


TROUBLED = Setup(
    routers=3,
    stale_s=0.05,
    profile_error=1.6,
    habits=Habits(retries=2, backoff_s=0.2, hang_up_share=0.1, hang_up_after_ms=20.0),
    replicas={"best": (0.0, 3.0), "cheap": (2.0,)},
)


def _run(setup: Setup, seed: int = 0) -> tuple[Cluster, Fate]:
    cluster = Cluster(MACHINE, _brain, seed=seed, setup=setup)
    return cluster, cluster.run(_busy(seed))


@pytest.mark.parametrize("setup", [Setup(), TROUBLED], ids=["quiet", "troubled"])
def test_every_request_ends_exactly_once(setup: Setup) -> None:
    """Ending twice raises inside; here none is left open, and all ways of ending occur."""
    _, fate = _run(setup)
    seen = set(map(Outcome, fate.outcomes))
    assert Outcome.OPEN not in seen
    assert {Outcome.ON_TIME, Outcome.REJECTED, Outcome.LATE} <= seen
    assert (Outcome.HUNG_UP in seen) == bool(setup.habits.hang_up_share)


@pytest.mark.parametrize("setup", [Setup(), TROUBLED], ids=["quiet", "troubled"])
def test_tokens_and_calls_in_flight_return_to_zero(setup: Setup) -> None:
    """In the simulated routers, and in the product's own brains."""
    cluster, _ = _run(setup)
    for router, policy in zip(cluster.routers, cluster.policies, strict=True):
        assert isinstance(policy, BrainPolicy)
        for variant in cluster.replicas:
            load = policy.brain.load(variant)
            assert router.inflight_tokens(variant) == load.inflight_tokens == 0
            assert router.inflight_requests(variant) == load.calls == 0
    calls = [replica.calls for replicas in cluster.replicas.values() for replica in replicas]
    assert set(calls) == {0}


def test_the_same_seed_gives_the_same_run() -> None:
    """To the last bit, and another seed another one."""
    first, again, other = (_run(TROUBLED, seed)[1] for seed in (1, 1, 2))
    assert (first.outcomes, first.latencies_ms) == (again.outcomes, again.latencies_ms)
    assert first.latencies_ms != other.latencies_ms


def test_clients_that_are_refused_ask_again() -> None:
    """So often as they are patient, and each time counts apart from first attempts."""

    class Refuses(Only):
        def decide(self, request: SimRequest, view: View, *, now_s: float) -> str | None:
            del request, view, now_s

    setup = Setup(habits=Habits(retries=2, backoff_s=1.0, jitter=0.0))
    cluster = Cluster(ALONE, lambda _machine, _rng: Refuses(""), seed=0, setup=setup)
    fate = cluster.run([request(0, 0.0), request(1, 0.5)])
    assert list(fate.outcomes) == [Outcome.REJECTED, Outcome.REJECTED]
    assert [outcome for _, outcome in fate.retried] == [Outcome.REJECTED] * 4
    assert [when_s for when_s, _ in fate.retried] == pytest.approx(
        [1.001, 1.501, 3.002, 3.502], abs=0.001
    )


def test_what_is_turned_away_at_the_door_costs_the_router_less() -> None:
    """The policy is asked as the thread takes a request up; who is turned away is never decided about."""
    asked: list[float] = []

    class Door(BrainPolicy):
        def turns_away(self, lag_ms: float, *, now_s: float) -> bool:
            del now_s
            asked.append(lag_ms)
            self.retry_after_s = 3.0
            return len(asked) % 2 == 0

    machine = replace(ALONE, refuse_ms=0.25)
    cluster = Cluster(machine, Door, seed=0)
    fate = cluster.run([request(n, 0.0) for n in range(4)])
    outcomes = [Outcome.ON_TIME, Outcome.REJECTED] * 2
    assert list(fate.outcomes) == outcomes
    assert asked[:3] == pytest.approx([0.0, 1.0, 1.25])
    assert (cluster.routers[0].turned_away, cluster.routers[0].decisions) == (2, 2)


def test_clients_that_hang_up_are_counted_and_forgotten() -> None:
    """Their texts leave the queue before the engine comes to them."""
    computed: list[int] = []
    setup = Setup(habits=Habits(hang_up_share=1.0, hang_up_after_ms=20.0))
    machine = Machine(cores=8, variants=(facts(per_token_ms=1.0),))
    cluster = Cluster(
        machine, _always, seed=0, setup=setup, computed=lambda r: computed.append(r.number)
    )
    fate = cluster.run([request(n, 0.0) for n in range(3)])
    assert set(fate.outcomes) == {Outcome.HUNG_UP}
    assert computed == [0]


def test_several_routers_share_the_work() -> None:
    """Each decides about its part."""
    cluster, _ = _run(Setup(routers=4))
    decisions = [router.decisions for router in cluster.routers]
    assert sum(decisions) == len(_busy())
    assert min(decisions) > 0.2 * sum(decisions)


@pytest.mark.parametrize("routers", [1, 2, 4])
def test_routers_together_run_no_more_batches_than_there_are_cores(routers: int) -> None:
    """On four of them, in a burst: all cores are used, and nothing waits at a replica's door."""
    seen: list[int] = []
    machine = Machine(cores=4, streams=4, variants=(facts(),))

    def computed(one: SimRequest) -> None:
        del one
        seen.append(sum(r.calls for rs in cluster.replicas.values() for r in rs))

    setup = Setup(routers=routers)
    cluster = Cluster(machine, _always, seed=0, setup=setup, computed=computed)
    cluster.run(_busy())
    assert max(seen) == 4


def test_a_cold_variant_is_not_chosen_before_it_is_up() -> None:
    """Its replica starts two seconds late."""
    requests = _busy()
    _, fate = _run(Setup(replicas={"best": (2.0,)}))
    by_time = [(r.arrived_s, v) for r, v in zip(requests, fate.variants, strict=True)]
    assert "best" not in {v for arrived_s, v in by_time if arrived_s < 1.9}
    assert "best" in {v for arrived_s, v in by_time if arrived_s > 2.0}


def test_a_second_replica_takes_part_of_the_load() -> None:
    """Of what one alone cannot carry, two lose less than half."""
    machine = Machine(cores=8, variants=(facts(),))
    requests = requests_at(steady(500.0, 5.0, 0), assumed_pools(), seed=0)
    missed = []
    for starts in ((0.0,), (0.0, 0.0)):
        setup = Setup(replicas={"only": starts})
        fate = Cluster(machine, _always, seed=0, setup=setup).run(requests)
        missed.append(sum(o != Outcome.ON_TIME for o in fate.outcomes) / len(requests))
    assert missed[1] < missed[0] / 2
