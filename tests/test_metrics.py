"""`GET /metrics`: counts and beliefs of one router, as Prometheus reads them."""

from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.asked import VARIANTS

MakeRouter = Callable[..., Any]


def _samples(served: Any) -> dict[tuple[str, ...], float]:
    """Values by name, variant and outcome."""
    response = served.ask("GET", "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            assert sample.labels.pop("router")
            kinds = [sample.labels[k] for k in ("variant", "outcome") if k in sample.labels]
            found[sample.name, *kinds] = sample.value
    return found


def test_requests_are_counted_by_variant_and_outcome(served: Any) -> None:
    """Answered, refused, and how long the answers took."""
    for _ in range(3):
        served.embed(variant="fake-int8")
    served.embed(latency_ms=1)
    found = _samples(served)
    assert found["embeddings_requests_total", "fake-int8", "answered"] == 3
    assert found["embeddings_requests_total", "fake-fp32", "answered"] == 0
    assert found["embeddings_refused_total",] == 1
    assert found["embeddings_seconds_count", "fake-int8"] == 3
    assert 0 < found["embeddings_seconds_sum", "fake-int8"] < 60


def test_what_the_router_believes_is_told(served: Any) -> None:
    """Replicas, tokens, demand, the forecast's error where there is one, and the brownout."""
    served.embed(variant="fake-int8")
    found = _samples(served)
    assert [found["embeddings_ready", v] for v in VARIANTS] == [1, 1, 1]
    assert [found["embeddings_replicas", v] for v in VARIANTS] == [1, 1, 1]
    assert found["embeddings_inflight_tokens", "fake-int8"] == 0
    assert found["embeddings_queued_tokens", "fake-int8"] == 0
    assert found["embeddings_demand_engines", "fake-int8"] > 0
    assert found["embeddings_forecast_error", "fake-int8"] >= 0
    assert ("embeddings_forecast_error", "fake-fp32") not in found
    assert (found["embeddings_brownout_level",], found["embeddings_brownout_floor",]) == (0, 0.99)
    assert found["embeddings_miss_share",] == 0


def test_metrics_are_there_before_anything_is_ready(make_router: MakeRouter) -> None:
    """A server that does not come up is just the one to look at."""
    found = _samples(make_router(ready=False))
    assert [found["embeddings_ready", v] for v in VARIANTS] == [0, 0, 0]
