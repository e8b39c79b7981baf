"""What variants share: room on the cores, hosts, and the rent of a core-millisecond."""

import pytest

from serve_app.policy.pool import ASKED_OVER_S, MOST_LOAD, RENT, Pool


@pytest.mark.parametrize(("per_s", "load"), [(50, 0.5), (100, 1.0), (1000, 10.0)])
def test_the_rent_follows_what_is_asked_for(per_s: int, load: float) -> None:
    """Work of 20 ms so often a second on two cores: its share of them, and the rent up to a limit; idle cores are free."""
    pool = Pool(cores=2.0)
    pool.busy = 1
    assert _rent(pool, 0.0) == 0
    steps = int(10 * ASKED_OVER_S * per_s)
    for step in range(steps):
        pool.asked(20.0, now_s=step / per_s)
    now_s = steps / per_s
    assert pool.load(now_s) == pytest.approx(load, rel=0.05)
    assert _rent(pool, now_s) == pytest.approx(RENT * min(load, MOST_LOAD), rel=0.05)
    assert _rent(pool, now_s + 20 * ASKED_OVER_S) < 1e-6
    pool.busy = 0
    assert _rent(pool, now_s) == 0


def _rent(pool: Pool, now_s: float) -> float:
    pool.look(now_s)
    return pool.rent


def test_hosts_bring_their_cores() -> None:
    """Replicas on several hosts, of one variant or of two, have all their cores; one that nobody names is one."""
    pool = Pool(cores=1.8)
    assert (pool.cores, pool.width) == (1.8, 2)
    pool.heard("a", {""}, places=4)
    assert pool.cores == 1.8
    pool.heard("a", {"h1"}, places=4)
    pool.heard("b", {"h1", "h2"}, places=8)
    assert (pool.cores, pool.width) == (3.6, 4)
    pool.heard("b", set(), places=4)
    assert pool.cores == 1.8
    device = Pool(cores=1.0, is_shared=False)
    device.heard("a", {"h1", "h2"}, places=3)
    assert device.cores == 3
