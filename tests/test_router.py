"""The server from request to answer: a router over ASGI, its replicas in this process, no Ray."""

import asyncio
import base64
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serve_app import dispatch
from serve_app.dispatch import Transport
from serve_app.engines.base import open_engine
from serve_app.engines.fake_engine import FakeEngine
from serve_app.errors import InternalError, ReplicaDied
from serve_app.manifest import read_manifest
from serve_app.replica import Call, Replica, Reply

MakeRouter = Callable[..., Any]

VARIANTS = ["fake-fp32", "fake-bf16", "fake-int8"]
HELLO_WORLD = [2, 9, 10, 3]  # with its special tokens; forecast at p95 4800, 480 and 48 ms
VOCABULARY = 14
MAX_TOKENS = 16


@pytest.fixture
def served(make_router: MakeRouter) -> Any:
    return make_router(aliases="alias")


def _vector(ids: list[int]) -> list[float]:
    return FakeEngine(dims=8).embed([np.array(ids, dtype=np.int32)])[0].tolist()


def _variant(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["routing"]["variant"])


def _error(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object of an answer with this status; always JSON, always all four fields."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


class TestEmbeddings:
    """`POST /v1/embeddings`."""

    def test_the_answer_is_openais_with_routing_beside_it(self, served: Any) -> None:
        """All of OpenAI's fields, the exact vector, and how the request was routed."""
        response = served.embed("hello world", latency_ms=10_000)
        assert response.status_code == 200
        body = response.json()
        routing = body.pop("routing")
        assert body == {
            "object": "list",
            "model": "tiny",
            "data": [
                {
                    "object": "embedding",
                    "index": 0,
                    "embedding": pytest.approx(_vector(HELLO_WORLD)),
                }
            ],
            "usage": {"prompt_tokens": 4, "total_tokens": 4},
        }
        assert set(routing) == {
            "variant",
            "fidelity",
            "reason",
            "predicted_ms",
            "budget_ms",
            "queue_ms",
            "inference_ms",
            "total_ms",
            "within_budget",
            "truncated",
        }
        assert (routing["variant"], routing["fidelity"]) == ("fake-bf16", 0.9995)
        assert (routing["budget_ms"], routing["within_budget"]) == (10_000, True)
        assert routing["truncated"] == []
        assert 400 <= routing["predicted_ms"] < 1000
        assert 0 <= routing["queue_ms"] + routing["inference_ms"] <= routing["total_ms"] < 10_000

    def test_headers_repeat_the_routing(self, served: Any) -> None:
        """Clients that hide the body's extra fields still show headers."""
        response = served.embed(quality="fast")
        routing = response.json()["routing"]
        assert response.headers["X-Variant"] == routing["variant"] == "fake-int8"
        assert float(response.headers["X-Fidelity"]) == routing["fidelity"]
        assert float(response.headers["X-Predicted-Ms"]) == routing["predicted_ms"]
        assert float(response.headers["X-Queue-Ms"]) == routing["queue_ms"]
        assert float(response.headers["X-Inference-Ms"]) == routing["inference_ms"]

    @pytest.mark.parametrize(
        ("hints", "expected"),
        [
            ({}, "fake-bf16"),  # balanced within a second
            ({"latency_ms": 10_000}, "fake-bf16"),  # fp32 fits too: a tie, and this one is cheaper
            ({"latency_ms": 300}, "fake-int8"),
            ({"quality": "best"}, "fake-fp32"),
            ({"quality": "balanced"}, "fake-bf16"),
            ({"quality": "fast"}, "fake-int8"),
            ({"quality": 0.98}, "fake-int8"),
            ({"quality": 0.9999}, "fake-fp32"),
            ({"quality": "best", "latency_ms": 10_000}, "fake-fp32"),
            ({"quality": "fast", "latency_ms": 10_000}, "fake-bf16"),
            ({"variant": "fake-fp32"}, "fake-fp32"),
            ({"variant": "fake-int8", "latency_ms": 10_000}, "fake-int8"),
            ({"variant": "fake-int8", "quality": 0.985}, "fake-int8"),
        ],
    )
    def test_hints_choose_the_variant_from_body_and_headers_alike(
        self, served: Any, hints: dict[str, Any], expected: str
    ) -> None:
        """The table of hints, end to end; the same hints as headers decide the same."""
        assert _variant(served.embed(**hints)) == expected
        names = {"latency_ms": "X-Latency-Ms", "quality": "X-Quality", "variant": "X-Variant"}
        headers = {names[name]: str(value) for name, value in hints.items()}
        body = {"input": "hello world"}
        by_header = served.ask("POST", "/v1/embeddings", json=body, headers=headers)
        assert _variant(by_header) == expected

    def test_one_hint_switches_the_default_off(self, served: Any) -> None:
        """A quality alone has no budget, and the answer says so."""
        routing = served.embed(quality="best").json()["routing"]
        assert (routing["budget_ms"], routing["within_budget"]) == (None, None)
        assert served.embed().json()["routing"]["budget_ms"] == 1000

    def test_the_default_hint_is_a_setting(self, make_router: MakeRouter) -> None:
        """Who runs the server says what unhinted requests get."""
        served = make_router(default_quality="best", default_latency_ms=20_000)
        routing = served.embed().json()["routing"]
        assert (routing["variant"], routing["budget_ms"]) == ("fake-fp32", 20_000)

    def test_a_default_above_every_variant_is_lowered(
        self, make_router: MakeRouter, write_artifact: Any, tmp_path: Path
    ) -> None:
        """Nobody asked for 0.99: unhinted requests get the best there is, explicit ones a 429."""
        write_artifact(tmp_path / "fake-int8", p1=0.95, cost_ms=10)
        served = make_router(tmp_path)
        assert _variant(served.embed()) == "fake-int8"
        assert "Retry-After" not in served.embed(quality="balanced").headers
        _error(served.embed(quality="balanced"), 429)

    @pytest.mark.parametrize(
        ("model", "expected"),
        [
            ("tiny", "fake-bf16"),
            ("auto", "fake-bf16"),
            ("alias", "fake-bf16"),
            ("tiny:fake-int8", "fake-int8"),
            ("auto:fake-fp32", "fake-fp32"),
            ("alias:fake-int8", "fake-int8"),
        ],
    )
    def test_a_models_name_may_pin(self, served: Any, model: str, expected: str) -> None:
        """Known names and aliases, each with or without `:variant`; the answer names the model."""
        response = served.embed(model=model)
        assert _variant(response) == expected
        assert response.json()["model"] == "tiny"

    def test_base64_and_floats_are_the_same_vectors(self, served: Any) -> None:
        """The encoding changes nothing but the text of a vector."""
        texts = ["hello", "hello world"]
        floats = served.embed(texts, variant="fake-int8").json()["data"]
        coded = served.embed(texts, variant="fake-int8", encoding_format="base64").json()["data"]
        for one, other in zip(floats, coded, strict=True):
            decoded = np.frombuffer(base64.b64decode(other["embedding"]), dtype="<f4")
            np.testing.assert_array_equal(np.float32(one["embedding"]), decoded)

    def test_dimensions_shorten_and_renormalise(self, served: Any) -> None:
        """The first dimensions of the same vector, of unit length; all of them are allowed."""
        short = served.embed(dimensions=3).json()["data"][0]["embedding"]
        whole = np.array(_vector(HELLO_WORLD)[:3])
        np.testing.assert_allclose(short, whole / np.linalg.norm(whole), rtol=1e-5)
        for dimensions in (1, 8):
            (item,) = served.embed(dimensions=dimensions).json()["data"]
            assert len(item["embedding"]) == dimensions

    def test_many_texts_come_back_in_order(self, served: Any) -> None:
        """More texts than a call or a batch holds, of mixed lengths: each has its own vector."""
        texts = ["hello world " * (i % 5) + "a" for i in range(60)]
        body = served.embed(texts, quality="fast").json()
        ids = [[2, *[9, 10] * (i % 5), 4, 3] for i in range(60)]
        assert [item["index"] for item in body["data"]] == list(range(60))
        found = [item["embedding"] for item in body["data"]]
        np.testing.assert_allclose(found, [_vector(one) for one in ids], rtol=1e-5)
        assert body["usage"]["total_tokens"] == sum(map(len, ids))

    @pytest.mark.parametrize(
        "ids", [[9, 10], HELLO_WORLD, [2, 9, 10], [9, 10, 3]], ids=["bare", "whole", "start", "end"]
    )
    def test_token_ids_get_the_special_tokens_they_lack(self, served: Any, ids: list[int]) -> None:
        """With or without them, ids give the vector and the usage of their text."""
        body = served.embed(ids).json()
        assert body["data"][0]["embedding"] == pytest.approx(_vector(HELLO_WORLD))
        assert body["usage"]["prompt_tokens"] == 4

    def test_lists_of_token_ids_are_texts(self, served: Any) -> None:
        """Each list is one text."""
        body = served.embed([[9, 10], [4]], quality="fast").json()
        found = [item["embedding"] for item in body["data"]]
        np.testing.assert_allclose(found, [_vector(HELLO_WORLD), _vector([2, 4, 3])], rtol=1e-5)

    @pytest.mark.parametrize("shape", ["text", "ids"])
    def test_what_is_cut_is_said(self, served: Any, shape: str) -> None:
        """Texts over the model's limit are cut to it, and their indices stand in the routing."""
        long = "hello " * 15 if shape == "text" else [9] * 15
        whole = "hello " * 14 if shape == "text" else [9] * 14
        body = served.embed([whole, long], quality="fast").json()
        assert body["routing"]["truncated"] == [1]
        assert body["usage"]["total_tokens"] == 2 * MAX_TOKENS
        assert body["data"][1]["embedding"] == pytest.approx(_vector([2, *[9] * 14, 3]))

    @pytest.mark.parametrize("shape", ["text", "ids"])
    def test_who_forbids_truncation_is_refused_instead(self, served: Any, shape: str) -> None:
        """`truncate: false` makes it 400 by place and limit; at the limit itself nothing is cut."""
        long = "hello " * 15 if shape == "text" else [9] * 15
        whole = "hello " * 14 if shape == "text" else [9] * 14
        error = _error(served.embed([whole, long], truncate=False, quality="fast"), 400)
        assert error["param"] == "input[1]"
        assert "16 tokens" in error["message"]
        assert served.embed([whole], truncate=False, quality="fast").status_code == 200

    def test_much_text_is_tokenised_beside_the_loop(self, served: Any) -> None:
        """A request above the threshold goes through a thread, to the same vectors."""
        long = "hello " * 5000
        body = served.embed([long, "hello world"], quality="fast").json()
        assert body["data"][1]["embedding"] == pytest.approx(_vector(HELLO_WORLD))
        assert body["routing"]["truncated"] == [0]

    def test_texts_of_spaces_and_unknown_words_are_texts(self, served: Any) -> None:
        """What the tokenizer makes nothing of still has its special tokens, and a vector."""
        body = served.embed([" ", "漢字 🙂"], quality="fast").json()
        assert body["usage"]["total_tokens"] == 2 + 4
        assert len(body["data"]) == 2


class TestRefusals:
    """What is not served, and how that is said."""

    @pytest.mark.parametrize(
        ("fields", "status", "code", "param", "told"),
        [
            ({"model": "gpt"}, 404, "model_not_found", "model", "'gpt'"),
            ({"variant": "fp4"}, 404, "variant_not_found", "variant", "'fp4'; deployed are fake-"),
            (
                {"model": "tiny:fake-int8", "variant": "fake-fp32"},
                400,
                "hint_conflict",
                "variant",
                "'fake-fp32'",
            ),
            ({"variant": "fake-int8", "quality": 0.99}, 400, "hint_conflict", "variant", "0.9850"),
            (
                {"variant": "fake-bf16", "quality": "best"},
                400,
                "hint_conflict",
                "variant",
                "1.0000",
            ),
            (
                {"model": "tiny:fake-int8", "quality": "best"},
                400,
                "hint_conflict",
                "model",
                "'fake-int8'",
            ),
            ({"dimensions": 9}, 400, "invalid_value", "dimensions", "9, the model has 8"),
            ({"input": [5, VOCABULARY]}, 400, "invalid_value", "input[1]", "14"),
            ({"input": [-1]}, 400, "invalid_value", "input[0]", "-1"),
            ({"input": [[5], [5, 99]]}, 400, "invalid_value", "input[1][1]", "99"),
            ({"latency_ms": 0}, 400, "invalid_value", "latency_ms", "got 0"),
            ({"quality": "great"}, 400, "invalid_value", "quality", "'great'"),
            ({"nonsense": 1}, 400, "unknown_field", "nonsense", "'nonsense'"),
            ({"input": ["a"] * 100_000}, 413, "payload_too_large", "input", "100000"),
        ],
        ids=lambda value: str(value)[:50] if isinstance(value, dict) else None,
    )
    def test_a_bad_request_is_refused_by_field_and_value(
        self, served: Any, fields: dict[str, Any], status: int, code: str, param: str, told: str
    ) -> None:
        """Status, code, the offending field, and the value in the message; on both routes."""
        for path in ("/v1/embeddings", "/v1/route"):
            response = served.ask("POST", path, json={"input": "hello"} | fields)
            error = _error(response, status)
            assert (error["code"], error["param"]) == (code, param)
            assert told in error["message"]
            assert error["type"] == "invalid_request_error"

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            pytest.param({"input": [[5, 99]]}, "input[0][1]"),
            pytest.param({"input": "hello " * 20, "truncate": False}, "input"),
            pytest.param({"model": "tiny:fp4"}, "model"),
        ],
        ids=str,
    )
    def test_the_offending_field_is_one_that_was_sent(
        self, served: Any, fields: dict[str, Any], param: str
    ) -> None:
        """A client can find what it is told of in what it sent."""
        response = served.ask("POST", "/v1/embeddings", json={"input": "hello"} | fields)
        assert response.json()["error"]["param"] == param

    def test_an_unknown_variant_in_a_header_is_refused_by_the_headers_name(
        self, served: Any
    ) -> None:
        """As for the other two hints, the header is what the client can look at."""
        headers = {"X-Variant": "fp4"}
        response = served.ask("POST", "/v1/embeddings", json={"input": "a"}, headers=headers)
        assert _error(response, 404)["param"] == "X-Variant"

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"", "no body"),
            (b"{", "not valid JSON"),
            (b"[1]", "[1]"),
            (b'{"input": "\\ud800"}', "ud800"),
        ],
    )
    def test_a_broken_body_is_refused(self, served: Any, content: bytes, told: str) -> None:
        """Whatever the bytes, the answer is a 400 in JSON that says what came."""
        assert told in _error(served.ask("POST", "/v1/embeddings", content=content), 400)["message"]

    def test_a_field_name_that_is_no_unicode_is_refused(self, served: Any) -> None:
        """The refusal itself must be encodable."""
        content = b'{"input": "a", "\\ud800": 1}'
        error = _error(served.ask("POST", "/v1/embeddings", content=content), 400)
        assert error["param"] == r"\ud800"

    @pytest.mark.parametrize("chunks", [1, 100])
    def test_a_body_over_the_limit_is_refused(self, served: Any, chunks: int) -> None:
        """10 MB, whole or in pieces: 413 with the limit."""

        async def content() -> Any:
            for _ in range(chunks):
                yield b"x" * (10_000_000 // chunks)

        error = _error(served.ask("POST", "/v1/embeddings", content=content()), 413)
        assert (error["code"], error["param"]) == ("payload_too_large", "body")
        assert "10000000 bytes" in error["message"]
        assert str(8 * 1024 * 1024) in error["message"]

    def test_the_limits_are_settings(self, make_router: MakeRouter) -> None:
        """Texts and bytes of a request, as whoever runs the server wants them."""
        served = make_router(max_texts=2, max_body_bytes=1024)
        _error(served.embed(["a"] * 3, quality="fast"), 413)
        _error(served.embed("a" * 1100, quality="fast"), 413)
        assert served.embed(["a"] * 2, quality="fast").status_code == 200

    @pytest.mark.parametrize(
        "kind", ["text/plain", "multipart/form-data; boundary=x", "image/png", ""]
    )
    def test_another_content_type_is_refused(self, served: Any, kind: str) -> None:
        """415, the header's name and its value."""
        headers = {"Content-Type": kind}
        response = served.ask("POST", "/v1/embeddings", content=b'{"input": "a"}', headers=headers)
        error = _error(response, 415)
        assert (error["code"], error["param"]) == ("unsupported_media_type", "Content-Type")
        assert repr(kind) in error["message"]

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Content-Type": "application/json; charset=utf-8"},
            {"Content-Type": "Application/JSON"},
            {"Content-Type": "application/vnd.api+json"},
            {"Content-Type": "application/x-www-form-urlencoded"},
        ],
        ids=str,
    )
    def test_json_by_any_name_is_taken(self, served: Any, headers: dict[str, str]) -> None:
        """`curl -d` without a header works, parameters and suffixes do."""
        content = b'{"input": "a", "quality": "fast"}'
        response = served.ask("POST", "/v1/embeddings", content=content, headers=headers)
        assert response.status_code == 200

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("GET", "/v1/embeddings", "POST"),
            ("PUT", "/v1/embeddings", "POST"),
            ("DELETE", "/v1/route", "POST"),
            ("POST", "/v1/models", "GET"),
            ("POST", "/health", "GET"),
        ],
    )
    def test_a_wrong_method_is_refused(
        self, served: Any, method: str, path: str, allowed: str
    ) -> None:
        """405 with what is allowed."""
        response = served.ask(method, path)
        error = _error(response, 405)
        assert error["code"] == "method_not_allowed"
        assert repr(method) in error["message"]
        assert response.headers["Allow"] == allowed

    @pytest.mark.parametrize("path", ["/v1/embedding", "/v1", "/v1/embeddings/", "/../etc/passwd"])
    def test_an_unknown_route_is_refused(self, served: Any, path: str) -> None:
        """404 with the path and the routes that there are."""
        error = _error(served.ask("GET", path), 404)
        assert error["code"] == "not_found"
        assert "/v1/embeddings" in error["message"]

    def test_a_hopeless_budget_is_not_admitted(self, served: Any) -> None:
        """429, nothing computed, no promise to retry, and what the fastest variant needs."""
        response = served.embed(latency_ms=1)
        error = _error(response, 429)
        assert (error["code"], error["type"]) == ("not_admitted", "overloaded_error")
        assert error["param"] == "latency_ms"
        assert "fake-int8, the fastest allowed, needs 4" in error["message"]
        assert "Retry-After" not in response.headers

    def test_never_a_vector_below_the_floor(self, served: Any) -> None:
        """A floor that does not fit the budget is refused, though a lesser variant would fit."""
        assert served.embed(latency_ms=300).status_code == 200
        _error(served.embed(latency_ms=300, quality="balanced"), 429)

    def test_a_queue_is_refused_with_a_time_to_retry(self, served: Any) -> None:
        """429 with a whole number of seconds, computed from the forecast."""
        with served.router._fleet.lanes["fake-int8"].load.hold(1000):  # 10 s of work
            response = served.embed(latency_ms=300)
        _error(response, 429)
        assert response.headers["Retry-After"] == "10"

    def test_a_floor_above_every_variant_is_refused_by_its_field(
        self, make_router: MakeRouter, write_artifact: Any, tmp_path: Path
    ) -> None:
        """The budget is innocent: the field is quality, and the message has its value."""
        write_artifact(tmp_path / "fake-int8", p1=0.95, cost_ms=10)
        served = make_router(tmp_path)
        error = _error(served.embed(latency_ms=10_000, quality=0.97), 429)
        assert error["param"] == "quality"
        assert "0.97" in error["message"]


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
        served.router._fleet.ready.update(VARIANTS)
        response = served.ask("POST", "/v1/route", json={"input": "a", "quality": "fast"})
        assert response.json()["variant"] == "fake-int8"
        assert calls == []

    def test_it_decides_as_embeddings_does(self, served: Any) -> None:
        """The same request to both routes meets the same variant."""
        for hints in ({}, {"quality": "best"}, {"latency_ms": 300}, {"model": "auto:fake-fp32"}):
            body = {"input": "hello world"} | hints
            asked = served.ask("POST", "/v1/route", json=body).json()["variant"]
            assert asked == _variant(served.embed(**hints))


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
        served = make_router(artifacts)
        served.embed(variant="fake-int8")
        found = served.ask("GET", "/v1/variants").json()
        assert [v["variant"] for v in found["variants"]] == VARIANTS
        int8 = found["variants"][2]
        assert int8 | {"runtime": "fake", "precision": "int8", "device": "cpu"} == int8
        assert (int8["fidelity"], int8["batch_invariant"], int8["ready"]) == (0.985, True, True)
        assert int8["size_bytes"] == len("fake-int8")
        assert int8["profile"] | {"per_token_ms": 0.1, "cost_ms": 0.1} == int8["profile"]
        assert (int8["replicas"], int8["queued_tokens"], int8["inflight_tokens"]) == (1, 0, 0)
        assert int8["forecast_error"] >= 0
        assert found["variants"][0]["forecast_error"] is None
        (off,) = found["not_on_ladder"]
        assert off["variant"] == "fake-fp8"
        assert "fidelity" in off["reason"]

    def test_variants_tells_the_profile_in_use(
        self, make_router: MakeRouter, clear_cut_artifacts: Path
    ) -> None:
        """Of a replica that measured its own, that one, with its hardware."""
        folder = clear_cut_artifacts / "fake-int8"
        manifest = read_manifest(folder)
        own = replace(manifest.profile, hardware="this machine", per_token_ms=3.0)
        replica = Replica(open_engine(folder, manifest), manifest, name="r1", measured=own)
        served = make_router(transports={"fake-int8": replica.embed})
        variants = served.ask("GET", "/v1/variants").json()["variants"]
        told = {v["variant"]: v["profile"] for v in variants}
        assert told["fake-int8"] == json.loads(json.dumps(asdict(own))) | {"cost_ms": 3.0}
        assert told["fake-bf16"]["hardware"] == "a test"

    def test_health_is_live_before_it_is_ready(self, make_router: MakeRouter) -> None:
        """Live at once; ready when every variant has answered; until then 503 and who is missing."""
        served = make_router(ready=False)
        assert served.ask("GET", "/health").status_code == 200
        error = _error(served.ask("GET", "/ready"), 503)
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
            assert _error(response, 503)["code"] == "not_ready"
        variants = served.ask("GET", "/v1/variants").json()["variants"]
        assert [(v["ready"], v["replicas"]) for v in variants] == [(False, 0)] * 3

    def test_a_variant_that_is_up_serves_while_others_start(self, make_router: MakeRouter) -> None:
        """Requests that it may answer need not wait for the rest of the ladder."""
        served = make_router(ready=False)
        served.run(served.router._fleet._warm_up("fake-int8", [np.array([2, 3], np.int32)]))
        assert _variant(served.embed(quality="fast")) == "fake-int8"
        assert "fake-fp32" in _error(served.ask("GET", "/ready"), 503)["message"]

    @pytest.mark.parametrize(
        "hints", [{"variant": "fake-fp32"}, {"quality": "best"}, {"quality": 0.99}], ids=str
    )
    def test_what_needs_a_variant_that_starts_is_not_ready(
        self, make_router: MakeRouter, hints: dict[str, Any]
    ) -> None:
        """503, come back later: neither a 429 for good nor a lesser variant as `best`."""
        served = make_router(ready=False)
        served.run(served.router._fleet._warm_up("fake-int8", [np.array([2, 3], np.int32)]))
        assert _error(served.embed(**hints), 503)["code"] == "not_ready"


class TestTrouble:
    """When replicas fail."""

    @pytest.mark.parametrize(
        ("raised", "status", "code"),
        [
            (ReplicaDied("gone"), 503, "replica_died"),
            (InternalError("broken"), 500, "internal_error"),
            (RuntimeError("secret"), 500, "internal_error"),
        ],
    )
    def test_a_failed_call_is_an_error_in_json(
        self, make_router: MakeRouter, raised: Exception, status: int, code: str
    ) -> None:
        """The client hears the kind of failure and nothing of the inside; others are served."""

        async def fail(_: Call) -> Reply:
            raise raised

        served = make_router(ready=False, transports={"fake-int8": fail})
        served.router._fleet.ready.update(VARIANTS)
        error = _error(served.embed(variant="fake-int8"), status)
        assert (error["code"], error["type"]) == (code, "server_error")
        assert "secret" not in error["message"]
        assert _variant(served.embed(variant="fake-bf16")) == "fake-bf16"
        assert served.router._fleet.lanes["fake-int8"].load.inflight_tokens == 0

    def test_a_deadline_that_passes_is_a_504(
        self, make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Admitted, and then the budget, counted from arrival, passes: nothing stays in flight."""
        deadlines_s: list[float] = []

        def pass_at_once(deadline_s: float) -> float:
            deadlines_s.append(deadline_s)
            return asyncio.get_running_loop().time()

        async def never(_: Call) -> Reply:
            await asyncio.Event().wait()
            raise AssertionError

        served = make_router(ready=False, transports=dict.fromkeys(VARIANTS, never))
        served.router._fleet.ready.update(VARIANTS)
        monkeypatch.setattr(dispatch, "_loop_time", pass_at_once)
        before_s = time.monotonic()
        error = _error(served.embed(latency_ms=300), 504)
        assert before_s + 0.3 <= deadlines_s[0] <= time.monotonic() + 0.3
        assert (error["code"], error["type"]) == ("deadline_exceeded", "server_error")
        assert served.router._fleet.lanes["fake-int8"].load.inflight_tokens == 0

    def test_a_replica_that_dies_once_is_not_noticed(
        self, make_router: MakeRouter, clear_cut_artifacts: Path
    ) -> None:
        """The second try answers."""
        calls: list[Call] = []
        inner: list[Transport] = []

        async def dies_once(call: Call) -> Reply:
            calls.append(call)
            if len(calls) == 1:
                raise ReplicaDied("gone")
            return await inner[0](call)

        whole = make_router(clear_cut_artifacts)
        inner.append(whole.router._fleet.lanes["fake-int8"]._transport)
        served = make_router(ready=False, transports={"fake-int8": dies_once})
        served.router._fleet.ready.update(VARIANTS)
        assert _variant(served.embed(variant="fake-int8")) == "fake-int8"
        assert len(calls) == 2

    def test_a_bug_is_a_500_in_json(self, served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Even what nobody thought of is answered in the shape of an error, without its inside."""
        monkeypatch.setattr(served.router, "_resolve", lambda _: 1 / 0)
        error = _error(served.embed(), 500)
        assert error["code"] == "internal_error"
        assert "zero" not in error["message"]

    def test_a_client_that_leaves_gets_no_answer(self, served: Any) -> None:
        """Gone before its body was complete: nothing is sent, nothing is raised."""
        sent: list[Any] = []
        incoming = [
            {"type": "http.request", "body": b'{"inp', "more_body": True},
            {"type": "http.disconnect"},
        ]

        async def receive() -> Any:
            return incoming.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": []}
        served.run(served.router.handle(scope, receive, send))
        assert sent == []

    def test_many_requests_at_once_get_their_own_vectors(self, served: Any) -> None:
        """Coalesced over the same lane, none gets another's rows; all tokens are given back."""
        texts = [" ".join(["hello"] * (1 + i % 7) + ["world"] * (i % 3)) for i in range(50)]

        async def ask(text: str) -> Any:
            sent: list[Any] = []
            body = json.dumps({"input": text, "variant": "fake-int8"}).encode()

            async def receive() -> Any:
                return {"type": "http.request", "body": body}

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": []}
            await served.router.handle(scope, receive, send)
            return json.loads(sent[1]["body"])["data"][0]["embedding"]

        async def all_at_once() -> Any:
            return await asyncio.gather(*map(ask, texts))

        ids = [[2, *[9] * (1 + i % 7), *[10] * (i % 3), 3] for i in range(50)]
        expected = [_vector(one) for one in ids]
        np.testing.assert_allclose(served.run(all_at_once()), expected, rtol=1e-5)
        assert served.router._fleet.lanes["fake-int8"].load.inflight_tokens == 0
