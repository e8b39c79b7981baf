"""What the router does not serve, and how that is said: status, code, field and value."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.asked import error_of

MakeRouter = Callable[..., Any]

VOCABULARY = 14


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
    served: Any, fields: dict[str, Any], status: int, code: str, param: str, told: str
) -> None:
    """Status, code, the offending field, and the value in the message; on both routes."""
    for path in ("/v1/embeddings", "/v1/route"):
        response = served.ask("POST", path, json={"input": "hello"} | fields)
        error = error_of(response, status)
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
    served: Any, fields: dict[str, Any], param: str
) -> None:
    """A client can find what it is told of in what it sent."""
    response = served.ask("POST", "/v1/embeddings", json={"input": "hello"} | fields)
    assert response.json()["error"]["param"] == param


def test_an_unknown_variant_in_a_header_is_refused_by_the_headers_name(served: Any) -> None:
    """As for the other two hints, the header is what the client can look at."""
    headers = {"X-Variant": "fp4"}
    response = served.ask("POST", "/v1/embeddings", json={"input": "a"}, headers=headers)
    assert error_of(response, 404)["param"] == "X-Variant"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no body"),
        (b"{", "not valid JSON"),
        (b"[1]", "[1]"),
        (b'{"input": "\\ud800"}', "ud800"),
    ],
)
def test_a_broken_body_is_refused(served: Any, content: bytes, told: str) -> None:
    """Whatever the bytes, the answer is a 400 in JSON that says what came."""
    assert told in error_of(served.ask("POST", "/v1/embeddings", content=content), 400)["message"]


def test_a_field_name_that_is_no_unicode_is_refused(served: Any) -> None:
    """The refusal itself must be encodable."""
    content = b'{"input": "a", "\\ud800": 1}'
    error = error_of(served.ask("POST", "/v1/embeddings", content=content), 400)
    assert error["param"] == r"\ud800"


@pytest.mark.parametrize("chunks", [1, 100])
def test_a_body_over_the_limit_is_refused(served: Any, chunks: int) -> None:
    """10 MB, whole or in pieces: 413 with the limit."""

    async def content() -> Any:
        for _ in range(chunks):
            yield b"x" * (10_000_000 // chunks)

    error = error_of(served.ask("POST", "/v1/embeddings", content=content()), 413)
    assert (error["code"], error["param"]) == ("payload_too_large", "body")
    assert "10000000 bytes" in error["message"]
    assert str(8 * 1024 * 1024) in error["message"]


def test_the_limits_are_settings(make_router: MakeRouter) -> None:
    """Texts and bytes of a request, as whoever runs the server wants them."""
    served = make_router(max_texts=2, max_body_bytes=1024)
    error_of(served.embed(["a"] * 3, quality="fast"), 413)
    error_of(served.embed("a" * 1100, quality="fast"), 413)
    assert served.embed(["a"] * 2, quality="fast").status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "image/png", ""])
def test_another_content_type_is_refused(served: Any, kind: str) -> None:
    """415, the header's name and its value."""
    headers = {"Content-Type": kind}
    response = served.ask("POST", "/v1/embeddings", content=b'{"input": "a"}', headers=headers)
    error = error_of(response, 415)
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
def test_json_by_any_name_is_taken(served: Any, headers: dict[str, str]) -> None:
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
def test_a_wrong_method_is_refused(served: Any, method: str, path: str, allowed: str) -> None:
    """405 with what is allowed."""
    response = served.ask(method, path)
    error = error_of(response, 405)
    assert error["code"] == "method_not_allowed"
    assert repr(method) in error["message"]
    assert response.headers["Allow"] == allowed


@pytest.mark.parametrize("path", ["/v1/embedding", "/v1", "/v1/embeddings/", "/../etc/passwd"])
def test_an_unknown_route_is_refused(served: Any, path: str) -> None:
    """404 with the path and the routes that there are."""
    error = error_of(served.ask("GET", path), 404)
    assert error["code"] == "not_found"
    assert "/v1/embeddings" in error["message"]


def test_a_hopeless_budget_is_not_admitted(served: Any) -> None:
    """429, nothing computed, no promise to retry, and what the fastest variant needs."""
    response = served.embed(latency_ms=1)
    error = error_of(response, 429)
    assert (error["code"], error["type"]) == ("not_admitted", "overloaded_error")
    assert error["param"] == "latency_ms"
    assert "fake-int8, the fastest allowed, needs 4" in error["message"]
    assert "Retry-After" not in response.headers


def test_never_a_vector_below_the_floor(served: Any) -> None:
    """A floor that does not fit the budget is refused, though a lesser variant would fit."""
    assert served.embed(latency_ms=300).status_code == 200
    error_of(served.embed(latency_ms=300, quality="balanced"), 429)


def test_a_queue_is_refused_with_a_time_to_retry(served: Any) -> None:
    """429 with a whole number of seconds, computed from the forecast, and up to half more."""
    load = served.router._fleet.lanes["fake-int8"].load
    with load.hold(1000), load.call(1000, now_s=time.monotonic()):  # 10 s of work, 12 s at p95
        response = served.embed(latency_ms=300)
    error_of(response, 429)
    assert 11 <= int(response.headers["Retry-After"]) <= 18


def test_a_floor_above_every_variant_is_refused_by_its_field(
    make_router: MakeRouter, write_artifact: Any, tmp_path: Path
) -> None:
    """The budget is innocent: the field is quality, and the message has its value."""
    write_artifact(tmp_path / "fake-int8", p1=0.95, cost_ms=10)
    served = make_router(tmp_path)
    error = error_of(served.embed(latency_ms=10_000, quality=0.97), 429)
    assert error["param"] == "quality"
    assert "0.97" in error["message"]


def test_a_router_that_cannot_keep_up_refuses_unread(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body is not even looked at; the answer says when to come back, and is counted."""
    fleet = served.router._fleet
    busy = mock.Mock(wraps=fleet.brain, turns_away=lambda **_: 3.2)
    monkeypatch.setattr(fleet, "brain", busy)
    response = served.ask("POST", "/v1/embeddings", content=b"not even JSON")
    assert response.headers["Retry-After"] == "4"
    assert error_of(response, 429)["code"] == "not_admitted"
    monkeypatch.undo()
    assert served.ask("POST", "/v1/embeddings", json={"input": "hello"}).status_code == 200
    metrics = served.ask("GET", "/metrics").text
    assert [line.split()[-1] for line in metrics.splitlines() if "_unread_total{" in line] == [
        "1.0"
    ]
