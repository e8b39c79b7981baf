"""What is made of the times that a server tells of its engines: alone and together."""

import json
import threading
from statistics import geometric_mean

import httpx
import numpy as np
import pytest

from loadtests import in_service
from loadtests.errors import NoServer
from loadtests.in_service import block_of_texts, fit_of, measure_engines, slower_by, together_pace
from loadtests.overheads import Spent, per_token
from loadtests.sim_types import Fit

PROFILE = Fit(base_ms=4.0, per_token_ms=0.1)
TOKENS = [9, 70, 12, 220, 8]


def _spent(*, router_ms: float, tokens: int) -> Spent:
    return Spent(
        router_ms=router_ms,
        replicas_ms=0.0,
        proxy_ms=0.0,
        client_ms=0.0,
        latency_ms=0.0,
        median_ms=0.0,
        p95_ms=0.0,
        inference_ms=0.0,
        tokens=tokens,
    )


def test_a_line_through_the_times_is_found_despite_stalls() -> None:
    """Base and per-token time come back, though the host took the core away twice."""
    took_ms = np.tile(6.0 + 0.12 * np.array(TOKENS), (4, 1))
    took_ms[1, 0] += 90.0
    took_ms[2, 3] += 400.0
    found = fit_of(TOKENS, took_ms, PROFILE)
    assert (found.base_ms, found.per_token_ms, found.spread) == pytest.approx((6.0, 0.12, 1.0))


def test_the_spread_in_service_is_told_around_the_typical_text() -> None:
    """One batch in eight that takes half as long again moves the p95, and not the middle."""
    took_ms = np.tile(6.0 + 0.12 * np.array(TOKENS), (8, 1))
    took_ms[3] *= 1.5
    found = fit_of(TOKENS, took_ms, PROFILE)
    assert found.ms(70.0) == pytest.approx(6.0 + 0.12 * 70)
    assert found.spread == pytest.approx(1.5)


def test_times_that_fall_with_length_are_taken_for_a_slower_profile() -> None:
    """Noise that makes no line leaves the profile's shape, at the pace of the typical text."""
    took_ms = np.array([[20.0, 9.0, 21.0, 3.0, 22.0]])
    found = fit_of(TOKENS, took_ms, PROFILE)
    assert found.base_ms / found.per_token_ms == pytest.approx(40.0)
    assert found.base_ms > PROFILE.base_ms


def test_each_text_is_compared_with_itself() -> None:
    """A block of long texts and short ones is not taken for slow because of the long."""
    alone_ms = np.array([[10.0, 50.0, 10.0], [10.0, 50.0, 90.0], [10.0, 50.0, 10.0]])
    assert slower_by(alone_ms, 1.2 * alone_ms) == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("slower", "cores", "expected"),
    [
        pytest.param([], 2.0, 1.0, id="one variant"),
        pytest.param([1.2, 1.3], 4.0, geometric_mean([1.2, 1.3]), id="a core for each"),
        pytest.param([1.25, 1.25], 1.8, 1.125, id="what sharing cores explains is taken off"),
        pytest.param([1.9], 1.0, 1.0, id="nothing is left of it"),
    ],
)
def test_sharing_cores_is_not_counted_twice(
    slower: list[float], cores: float, expected: float
) -> None:
    """The simulator shares cores itself; engines together are never faster than alone."""
    assert together_pace(slower, cores=cores) == pytest.approx(expected)


def test_a_block_has_texts_of_all_lengths_in_turns() -> None:
    """By the shares of the load tests, and the long ones not in a row."""
    lengths = [len(text) for text in block_of_texts()]
    assert len(lengths) == in_service.TEXTS
    long = [place for place, length in enumerate(lengths) if length > 500]
    assert len(long) == 2
    assert long[1] - long[0] > 1


class Served:
    """A server whose engines slow each other: it knows who is busy by who was sent many texts."""

    def __init__(self, slower: float) -> None:
        self.slower = slower
        self.busy = False
        self.asked: list[tuple[str, bool]] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if request.url.path == "/v1/route":
            return httpx.Response(200, json={"tokens": len(body["input"]) // 4})
        self.asked.append((body["variant"], self.busy))
        took_ms = (4.0 + 0.1 * (len(body["input"]) // 4)) * (self.slower if self.busy else 1.0)
        return httpx.Response(200, headers={"X-Inference-Ms": str(took_ms)})


def test_engines_are_measured_alone_and_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two variants each is measured while the other is busy; of one, nothing slows it."""
    served = Served(slower=1.3)

    class Busy:
        def __init__(self, _client: httpx.Client, variant: str) -> None:
            self.variant = variant

        def __enter__(self) -> None:
            served.busy = True

        def __exit__(self, *_: object) -> None:
            served.busy = False

    monkeypatch.setattr(in_service, "_busy", Busy)
    monkeypatch.setattr(in_service, "PER_S", 1e9)
    profiles = {"a": PROFILE, "b": PROFILE}
    with httpx.Client(base_url="http://x", transport=httpx.MockTransport(served.answer)) as client:
        both = measure_engines(client, profiles, cores=2.0)
        alone = measure_engines(client, {"a": PROFILE}, cores=2.0)
    assert both.together_pace == pytest.approx(1.3)
    assert both.served["b"].base_ms == pytest.approx(4.0, abs=0.01)
    assert both.served["b"].per_token_ms == pytest.approx(0.1, rel=0.01)
    assert {who for who, busy in served.asked if busy} == {"a", "b"}
    assert alone.together_pace == 1.0


def test_the_other_engine_is_kept_busy_with_one_batch_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One long text follows the other, until the server refuses one, which is told: two at once would be two batches."""
    inputs: list[object] = []
    several = threading.Event()

    def answer(request: httpx.Request) -> httpx.Response:
        inputs.append(json.loads(request.content)["input"])
        if len(inputs) <= 2:
            return httpx.Response(200)
        several.set()
        return httpx.Response(503)

    client = httpx.Client(base_url="http://x", transport=httpx.MockTransport(answer))
    monkeypatch.setattr(in_service.httpx, "Client", lambda **_: client)
    monkeypatch.setattr(in_service, "BEFORE_S", 0.0)
    with pytest.raises(NoServer, match="a answers 503"), in_service._busy(client, "a"):
        assert several.wait(60)
    assert len(inputs) == 3
    assert all(isinstance(text, str) and len(text) > 500 for text in inputs)


def test_what_a_router_takes_for_a_token_is_told_apart() -> None:
    """From a short text and a long one; noise that makes the long one cheaper counts as none."""
    short, long = _spent(router_ms=2.0, tokens=10), _spent(router_ms=2.6, tokens=210)
    assert per_token(short, long) == pytest.approx((0.003, 1.97))
    assert per_token(short, _spent(router_ms=1.9, tokens=210)) == (0.0, 2.0)
