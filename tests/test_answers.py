"""What goes back over HTTP: vectors bit by bit, routing, and errors in OpenAI's shape."""

import base64
import json

import numpy as np
import pytest

from serve_app.answers import (
    embedding_items,
    embeddings_response,
    error_response,
    model_object,
    routing_object,
    shorten,
)
from serve_app.asgi import Response
from serve_app.engines.base import Vectors
from serve_app.engines.tokenization import Tokenized
from serve_app.errors import (
    ArtifactError,
    BadRequest,
    DeadlineExceeded,
    InternalError,
    MethodNotAllowed,
    NotAdmitted,
    ReplicaDied,
    ServeAppError,
    UnknownField,
    UnknownModel,
)
from serve_app.manifest import Prompts
from serve_app.parts import Embedded
from serve_app.policy.forecast import Forecast
from serve_app.policy.hint import Hint
from serve_app.policy.routing import Candidate, Decision, Grounds, Limit


@pytest.fixture
def vectors() -> Vectors:
    found = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_base64_is_little_endian_float32(vectors: Vectors) -> None:
    """OpenAI's clients read the bytes back bit by bit."""
    items = embedding_items(vectors, "base64")
    for item, vector in zip(items, vectors, strict=True):
        decoded = np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4")
        np.testing.assert_array_equal(decoded, vector)
    one = embedding_items(np.array([[1.0]], dtype=np.float32), "base64")
    assert base64.b64decode(one[0]["embedding"]) == b"\x00\x00\x80\x3f"


def test_base64_of_a_slice_holds_the_slice(vectors: Vectors) -> None:
    """Vectors that do not lie together in memory come out whole."""
    decoded = base64.b64decode(embedding_items(vectors[:, :3], "base64")[1]["embedding"])
    np.testing.assert_array_equal(np.frombuffer(decoded, dtype="<f4"), vectors[1, :3])


def test_floats_survive_json_to_the_last_bit(vectors: Vectors) -> None:
    """The shortest decimal text of a float32 reads back as the same float32."""
    response = embeddings_response(
        "m", embedding_items(vectors, "float"), _tokenized(), routing=_routing()
    )
    data = json.loads(response.body)["data"]
    read = np.array([item["embedding"] for item in data], dtype=np.float32)
    np.testing.assert_array_equal(read, vectors)


def test_items_are_numbered_in_the_order_of_the_texts(vectors: Vectors) -> None:
    """Each item has OpenAI's type and its index."""
    items = embedding_items(vectors, "float")
    assert [(item["object"], item["index"]) for item in items] == [
        ("embedding", 0),
        ("embedding", 1),
        ("embedding", 2),
    ]


@pytest.mark.parametrize("dimensions", [1, 3, 7])
def test_shortened_vectors_have_unit_length_again(vectors: Vectors, dimensions: int) -> None:
    """The first dimensions, in the old direction, of length 1, still float32."""
    short = shorten(vectors, dimensions)
    assert short.shape == (3, dimensions)
    assert short.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)
    ratios = short / vectors[:, :dimensions]
    np.testing.assert_allclose(ratios, np.broadcast_to(ratios[:, :1], ratios.shape), rtol=1e-5)


@pytest.mark.parametrize("dimensions", [None, 8])
def test_whole_vectors_are_left_alone(vectors: Vectors, dimensions: int | None) -> None:
    """Without `dimensions`, or with all of them, no bit changes."""
    np.testing.assert_array_equal(shorten(vectors, dimensions), vectors)


def test_a_zero_beginning_does_not_divide_by_zero() -> None:
    """A vector without length in its first dimensions stays zero and finite."""
    short = shorten(np.array([[0, 0, 1]], dtype=np.float32), 2)
    np.testing.assert_array_equal(short, [[0, 0]])


def test_a_model_tells_its_prompts_and_sizes(make_facts) -> None:
    """Beside OpenAI's fields: dimensions, those it may be cut to, the token limit, and its prompts."""
    prompts = Prompts(query="query: ", document="passage: ", default="")
    facts = make_facts(prompts=prompts, matryoshka_dims=(4, 8))
    found = model_object("tiny:fake-fp32", facts, created_s=7)
    assert json.loads(Response.json(found).body) == {
        "id": "tiny:fake-fp32",
        "object": "model",
        "created": 7,
        "owned_by": "local",
        "dimensions": 8,
        "matryoshka_dims": [4, 8],
        "max_tokens": 16,
        "prompts": {"query": "query: ", "document": "passage: ", "default": ""},
    }


def _tokenized() -> Tokenized:
    return Tokenized([np.array([2, 9, 3]), np.array([2, 9, 10, 3])], [])


def _routing(*, budget_ms: float | None = 100.0, total_ms: float = 30.0) -> dict[str, object]:
    found = Forecast(wait_ms=4.0, service_ms=16.0, p95_ms=25.0)
    chosen = Candidate(variant="v", fidelity=0.98765432, cost=1.0, forecast=found)
    grounds = Grounds(Hint(), [chosen], Limit(left_ms=100.0, whole=True), 0.0)
    decision = Decision(chosen=chosen, reason="because", budget_ms=budget_ms, grounds=grounds)
    done = Embedded(np.zeros((1, 1), np.float32), queue_ms=3.00049, inference_ms=12.0)
    return routing_object(decision, chosen, done, decided_ms=1.5, total_ms=total_ms, truncated=[1])


def test_routing_counts_from_the_requests_arrival() -> None:
    """Predicted is what had passed at the decision and the median forecast; times are in ms."""
    assert _routing() == {
        "variant": "v",
        "fidelity": 0.98765432,
        "reason": "because",
        "predicted_ms": 21.5,
        "budget_ms": 100.0,
        "queue_ms": 3.0,
        "inference_ms": 12.0,
        "total_ms": 30.0,
        "within_budget": True,
        "truncated": [1],
    }


@pytest.mark.parametrize(
    ("budget_ms", "total_ms", "expected"),
    [(100, 100, True), (100, 100.1, False), (None, 100, None)],
)
def test_within_budget_is_said_only_of_a_budget(
    *, budget_ms: float | None, total_ms: float, expected: bool | None
) -> None:
    """True up to the budget itself, false beyond it, null without one."""
    assert _routing(budget_ms=budget_ms, total_ms=total_ms)["within_budget"] is expected


def test_headers_repeat_the_main_fields_of_routing(vectors: Vectors) -> None:
    """A client that keeps only headers learns variant, fidelity and times."""
    response = embeddings_response(
        "m", embedding_items(vectors, "float"), _tokenized(), routing=_routing()
    )
    assert response.status == 200
    assert response.headers == {
        "X-Variant": "v",
        "X-Fidelity": "0.987654",
        "X-Predicted-Ms": "21.5",
        "X-Queue-Ms": "3.0",
        "X-Inference-Ms": "12.0",
    }
    assert json.loads(response.body)["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "param"),
    [
        (BadRequest("m", param="p"), 400, "invalid_request_error", "invalid_value", "p"),
        (UnknownField("m", param="x"), 400, "invalid_request_error", "unknown_field", "x"),
        (UnknownModel("m"), 404, "invalid_request_error", "model_not_found", None),
        (ReplicaDied("m"), 503, "server_error", "replica_died", None),
        (DeadlineExceeded("m"), 504, "server_error", "deadline_exceeded", None),
        (InternalError("m"), 500, "server_error", "internal_error", None),
        (ArtifactError("m"), 500, "server_error", "artifact_error", None),
    ],
)
def test_errors_have_openais_shape(
    error: ServeAppError, status: int, kind: str, code: str, param: str | None
) -> None:
    """Message, type, param and code, all four always there, under `error`."""
    response = error_response(error)
    assert response.status == status
    assert json.loads(response.body) == {
        "error": {"message": "m", "type": kind, "param": param, "code": code}
    }
    assert "Retry-After" not in response.headers


@pytest.mark.parametrize(
    ("retry_after_s", "expected"), [(0.0001, "1"), (1.0, "1"), (1.01, "2"), (59.5, "60")]
)
def test_retry_after_is_a_whole_number_of_seconds(retry_after_s: float, expected: str) -> None:
    """HTTP knows whole seconds only: rounded up, and never 0, which would mean at once."""
    response = error_response(NotAdmitted("m", param="latency_ms", retry_after_s=retry_after_s))
    assert response.status == 429
    assert response.headers["Retry-After"] == expected
    assert json.loads(response.body)["error"]["type"] == "overloaded_error"


def test_no_retry_after_where_waiting_cannot_help() -> None:
    """A hopeless budget is refused without a promise."""
    response = error_response(NotAdmitted("m", param="latency_ms", retry_after_s=None))
    assert (response.status, "Retry-After" in response.headers) == (429, False)


def test_a_wrong_method_hears_the_allowed_ones() -> None:
    """HTTP wants `Allow` beside a 405."""
    response = error_response(MethodNotAllowed("m", allowed=("GET", "HEAD")))
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


def test_what_is_no_unicode_is_escaped() -> None:
    """A lone surrogate in a field's name must not break the answer that refuses it."""
    error = json.loads(error_response(UnknownField("no \ud800", param="\ud800")).body)["error"]
    assert (error["message"], error["param"]) == (r"no \ud800", r"\ud800")
