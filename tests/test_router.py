"""The server from request to answer: a router over ASGI, its replicas in this process, no Ray."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.asked import HELLO_WORLD, error_of, variant_of, vector_of

MakeRouter = Callable[..., Any]
MAX_TOKENS = 16


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
                    "embedding": pytest.approx(vector_of(HELLO_WORLD)),
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
        assert variant_of(served.embed(**hints)) == expected
        names = {"latency_ms": "X-Latency-Ms", "quality": "X-Quality", "variant": "X-Variant"}
        headers = {names[name]: str(value) for name, value in hints.items()}
        body = {"input": "hello world"}
        by_header = served.ask("POST", "/v1/embeddings", json=body, headers=headers)
        assert variant_of(by_header) == expected

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
        assert variant_of(served.embed()) == "fake-int8"
        assert "Retry-After" not in served.embed(quality="balanced").headers
        error_of(served.embed(quality="balanced"), 429)

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
        assert variant_of(response) == expected
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
        whole = np.array(vector_of(HELLO_WORLD)[:3])
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
        np.testing.assert_allclose(found, [vector_of(one) for one in ids], rtol=1e-5)
        assert body["usage"]["total_tokens"] == sum(map(len, ids))

    @pytest.mark.parametrize(
        "ids", [[9, 10], HELLO_WORLD, [2, 9, 10], [9, 10, 3]], ids=["bare", "whole", "start", "end"]
    )
    def test_token_ids_get_the_special_tokens_they_lack(self, served: Any, ids: list[int]) -> None:
        """With or without them, ids give the vector and the usage of their text."""
        body = served.embed(ids).json()
        assert body["data"][0]["embedding"] == pytest.approx(vector_of(HELLO_WORLD))
        assert body["usage"]["prompt_tokens"] == 4

    def test_lists_of_token_ids_are_texts(self, served: Any) -> None:
        """Each list is one text."""
        body = served.embed([[9, 10], [4]], quality="fast").json()
        found = [item["embedding"] for item in body["data"]]
        np.testing.assert_allclose(found, [vector_of(HELLO_WORLD), vector_of([2, 4, 3])], rtol=1e-5)

    @pytest.mark.parametrize("shape", ["text", "ids"])
    def test_what_is_cut_is_said(self, served: Any, shape: str) -> None:
        """Texts over the model's limit are cut to it, and their indices stand in the routing."""
        long = "hello " * 15 if shape == "text" else [9] * 15
        whole = "hello " * 14 if shape == "text" else [9] * 14
        body = served.embed([whole, long], quality="fast").json()
        assert body["routing"]["truncated"] == [1]
        assert body["usage"]["total_tokens"] == 2 * MAX_TOKENS
        assert body["data"][1]["embedding"] == pytest.approx(vector_of([2, *[9] * 14, 3]))

    @pytest.mark.parametrize("shape", ["text", "ids"])
    def test_who_forbids_truncation_is_refused_instead(self, served: Any, shape: str) -> None:
        """`truncate: false` makes it 400 by place and limit; at the limit itself nothing is cut."""
        long = "hello " * 15 if shape == "text" else [9] * 15
        whole = "hello " * 14 if shape == "text" else [9] * 14
        error = error_of(served.embed([whole, long], truncate=False, quality="fast"), 400)
        assert error["param"] == "input[1]"
        assert "16 tokens" in error["message"]
        assert served.embed([whole], truncate=False, quality="fast").status_code == 200

    def test_much_text_is_tokenised_beside_the_loop(self, served: Any) -> None:
        """A request above the threshold goes through a thread, to the same vectors."""
        long = "hello " * 5000
        body = served.embed([long, "hello world"], quality="fast").json()
        assert body["data"][1]["embedding"] == pytest.approx(vector_of(HELLO_WORLD))
        assert body["routing"]["truncated"] == [0]

    def test_texts_of_spaces_and_unknown_words_are_texts(self, served: Any) -> None:
        """What the tokenizer makes nothing of still has its special tokens, and a vector."""
        body = served.embed([" ", "漢字 🙂"], quality="fast").json()
        assert body["usage"]["total_tokens"] == 2 + 4
        assert len(body["data"]) == 2
