"""How a simulated router spreads its calls over a variant's replicas."""

from collections import Counter

import pytest

from loadtests.cluster_model import Cluster, Setup
from loadtests.sim_capacity import Only
from loadtests.sim_replica import Call, Replica
from loadtests.sim_types import Machine
from tests.loadtests.sim_machines import facts, request


def test_a_call_goes_to_the_replica_with_the_fewest_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long text keeps one busy; the short ones that follow go to the other, as on a server."""
    taken: Counter[str] = Counter()
    accept = Replica.accept

    def counted(replica: Replica, call: Call) -> None:
        taken[replica.name] += len(call.parts)
        accept(replica, call)

    monkeypatch.setattr(Replica, "accept", counted)
    machine = Machine(cores=8, variants=(facts(per_token_ms=1.0),))
    setup = Setup(replicas={"only": (0.0, 0.0)})
    cluster = Cluster(machine, lambda _machine, _rng: Only("only"), seed=0, setup=setup)
    texts = [request(0, 0.0, tokens=180)]
    texts += [request(number, 0.02 * number, tokens=5) for number in range(1, 8)]
    cluster.run(texts)
    assert sorted(taken.values()) == [1, 7]


def test_idle_replicas_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none has anything to do, no replica is passed over for good."""
    taken: Counter[str] = Counter()
    accept = Replica.accept

    def counted(replica: Replica, call: Call) -> None:
        taken[replica.name] += 1
        accept(replica, call)

    monkeypatch.setattr(Replica, "accept", counted)
    machine = Machine(cores=8, variants=(facts(),))
    setup = Setup(replicas={"only": (0.0, 0.0, 0.0)})
    cluster = Cluster(machine, lambda _machine, _rng: Only("only"), seed=0, setup=setup)
    cluster.run([request(number, float(number)) for number in range(9)])
    assert sorted(taken.values()) == [3, 3, 3]
