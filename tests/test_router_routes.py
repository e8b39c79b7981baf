"""The router's other routes: the decision without the work, and what is served."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.calls import Call, Reply
from serve_app.engines.base import open_engine
from serve_app.errors import ReplicaDied
from serve_app.manifest import read_manifest
from serve_app.policy.batching import short_batches
from serve_app.replica import Replica
from tests.asked import VARIANTS, error_of, variant_of

MakeRouter = Callable[..., Any]


class TestRoute:
    """`POST /v1/route`: the decision without the work."""

    def test_the_decision_is_told_in_full(self, served: Any) -> None:
        """Chosen, forecasts of all, and why each other was rejected; in the order of the ladder."""
        body = {"input": "hello world", "latency_ms": 300}
        found = served.ask("POST", "/v1/route", json=body).json()
        assert (found["admitted"], found["variant"]) == (True, "fake-int8")
        assert (found["fidelity"], found["at_risk"]) == (0.985, False)
        assert found["predicted_ms"] >= found["forecasts"][2]["p50_ms"] >= 40
        assert (found["budget_ms"], found["retry_after_s"]) == (300, None)
        assert (found["tokens"], found["truncated"]) == (4, [])
        assert [f["variant"] for f in found["forecasts"]] == VARIANTS
        p95_ms = [f["p95_ms"] for f in found["forecasts"]]
        for found_ms, idle_ms in zip(p95_ms, (4800, 480, 48), strict=True):
            assert idle_ms <= found_ms < idle_ms + 200  # the hops
        assert all(f["p50_ms"] < f["p95_ms"] for f in found["forecasts"])
        assert all(f["wait_ms"] == 0 and f["ready"] for f in found["forecasts"])
        assert found["brownout_level"] == 0
        assert {r["variant"]: r["reason"][:12] for r in found["rejected"]} == {
            "fake-fp32": "p95 forecast",
            "fake-bf16": "p95 forecast",
        }

    def test_a_refusal_is_a_decision_too(self, served: Any) -> None:
        """Asked only, a hopeless budget is no error: nothing chosen, and the reason."""
        response = served.ask("POST", "/v1/route", json={"input": "hello world", "latency_ms": 1})
        found = response.json()
        assert response.status_code == 200
        assert (found["admitted"], found["variant"], found["predicted_ms"]) == (False, None, None)
        assert "fastest" in found["reason"]
        assert len(found["rejected"]) == 3

    def test_nothing_is_computed(self, make_router: MakeRouter) -> None:
        """No call leaves the router."""
        calls: list[Call] = []

        async def count(call: Call) -> Reply:
            calls.append(call)
            raise ReplicaDied("no call was expected")

        served = make_router(ready=False, transports=dict.fromkeys(VARIANTS, count))
        served.set_ready()
        response = served.ask("POST", "/v1/route", json={"input": "a", "quality": "fast"})
        assert response.json()["variant"] == "fake-int8"
        assert calls == []

    def test_a_variant_without_replicas_is_shown_as_such(self, served: Any) -> None:
        """Its forecast is that of an idle one, and why it is not taken is said."""
        served.router.cool_down("fake-int8")
        body = {"input": "hello world", "quality": "fast"}
        found = served.ask("POST", "/v1/route", json=body).json()
        assert found["variant"] == "fake-bf16"
        assert [f["ready"] for f in found["forecasts"]] == [True, True, False]
        reasons = {r["variant"]: r["reason"] for r in found["rejected"]}
        assert reasons["fake-int8"] == "no replica is up yet"

    def test_it_decides_as_embeddings_does(self, served: Any) -> None:
        """The same request to both routes meets the same variant."""
        for hints in ({}, {"quality": "best"}, {"latency_ms": 700}, {"model": "auto:fake-fp32"}):
            body = {"input": "hello world"} | hints
            asked = served.ask("POST", "/v1/route", json=body).json()["variant"]
            assert asked == variant_of(served.embed(**hints))


class TestWhatIsServed:
    """`GET` routes."""

    def test_models_lists_every_name_that_is_taken(self, served: Any) -> None:
        """OpenAI's shape; each listed id works as `model`."""
        found = served.ask("GET", "/v1/models").json()
        ids = [model["id"] for model in found["data"]]
        assert found["object"] == "list"
        assert ids == ["tiny", "alias", "auto", *(f"tiny:{name}" for name in VARIANTS)]
        assert all(model["object"] == "model" for model in found["data"])
        assert all(served.embed(model=name).status_code == 200 for name in ids)

    def test_variants_tells_promises_and_load(
        self, make_router: MakeRouter, write_artifact: Any, artifacts: Path
    ) -> None:
        """What each variant is, what it promises, how loaded it is; and who is not deployed, why."""
        write_artifact(artifacts / "fake-fp8", p1=0.9, cost_ms=9)
        served = make_router(artifacts, streams=3)
        served.embed(variant="fake-int8")
        found = served.ask("GET", "/v1/variants").json()
        assert [v["variant"] for v in found["variants"]] == VARIANTS
        int8 = found["variants"][2]
        assert int8 | {"runtime": "fake", "precision": "int8", "device": "cpu"} == int8
        assert (int8["fidelity"], int8["batch_invariant"], int8["ready"]) == (0.985, True, True)
        assert int8["size_bytes"] == len("fake-int8")
        assert int8["profile"] | {"per_token_ms": 0.1, "cost_ms": 0.1} == int8["profile"]
        assert (int8["replicas"], int8["queued_tokens"], int8["inflight_tokens"]) == (1, 0, 0)
        assert int8["streams"] == 3
        assert int8["forecast_error"] >= 0
        assert int8["busy"] > 0
        assert int8["p95_factor"] >= 1
        assert found["variants"][0]["busy"] == 0
        assert found["brownout"] == {"level": 0, "floor": 0.99, "miss_share": 0}
        assert found["variants"][0]["forecast_error"] is None
        (off,) = found["not_on_ladder"]
        assert off["variant"] == "fake-fp8"
        assert "fidelity" in off["reason"]

    def test_variants_tells_the_profile_in_use(
        self, make_router: MakeRouter, clear_cut_artifacts: Path, at_its_word: Any
    ) -> None:
        """Of a replica that measured its own, that one, with its hardware."""
        folder = clear_cut_artifacts / "fake-int8"
        manifest = read_manifest(folder)
        own = replace(manifest.profile, hardware="this machine", per_token_ms=3.0)
        replica = Replica(open_engine(folder, manifest), manifest, name="r1", measured=own)
        served = make_router(transports={"fake-int8": at_its_word(replica)})
        variants = served.ask("GET", "/v1/variants").json()["variants"]
        told = {v["variant"]: v["profile"] for v in variants}
        in_use = short_batches(own)
        assert told["fake-int8"] == json.loads(json.dumps(asdict(in_use))) | {"cost_ms": 3.0}
        assert told["fake-bf16"]["hardware"] == "a test"

    def test_health_is_live_before_it_is_ready(self, make_router: MakeRouter) -> None:
        """Live at once; ready when every variant has answered; until then 503 and who is missing."""
        served = make_router(ready=False)
        assert served.ask("GET", "/health").status_code == 200
        error = error_of(served.ask("GET", "/ready"), 503)
        assert error["code"] == "not_ready"
        assert all(name in error["message"] for name in VARIANTS)
        served.run(served.router.warm_up())
        ready = served.ask("GET", "/ready")
        assert (ready.status_code, ready.json()["variants"]) == (200, VARIANTS)

    def test_before_it_is_ready_nothing_is_embedded(self, make_router: MakeRouter) -> None:
        """503 on both routes, and no replica is claimed."""
        served = make_router(ready=False)
        for path in ("/v1/embeddings", "/v1/route"):
            response = served.ask("POST", path, json={"input": "a"})
            assert error_of(response, 503)["code"] == "not_ready"
        variants = served.ask("GET", "/v1/variants").json()["variants"]
        assert [(v["ready"], v["replicas"]) for v in variants] == [(False, 0)] * 3

    def test_a_variant_that_is_up_serves_while_others_start(self, make_router: MakeRouter) -> None:
        """Requests that it may answer need not wait for the rest of the ladder."""
        served = make_router(ready=False)
        served.run(served.router._fleet.warm_up_variant("fake-int8", [np.array([2, 3], np.int32)]))
        assert variant_of(served.embed(quality="fast")) == "fake-int8"
        assert "fake-fp32" in error_of(served.ask("GET", "/ready"), 503)["message"]

    @pytest.mark.parametrize(
        "hints", [{"variant": "fake-fp32"}, {"quality": "best"}, {"quality": 0.99}], ids=str
    )
    def test_what_needs_a_variant_that_starts_is_not_ready(
        self, make_router: MakeRouter, hints: dict[str, Any]
    ) -> None:
        """503, come back later: neither a 429 for good nor a lesser variant as `best`."""
        served = make_router(ready=False)
        served.run(served.router._fleet.warm_up_variant("fake-int8", [np.array([2, 3], np.int32)]))
        assert error_of(served.embed(**hints), 503)["code"] == "not_ready"
