"""Bad input over real HTTP: each a JSON error that names field and value; the server goes on."""

from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.e2e

OK = {"input": "text"}
JSON = {"Content-Type": "application/json"}

# what, body as sent, status, param, words in the message
CASES: list[tuple[str, bytes | Any, int, str | None, str]] = [
    ("broken JSON", b'{"input": "te', 400, "body", "not valid JSON"),
    ("no body", b"", 400, "body", "no body"),
    ("a list as body", [1], 400, "body", "[1]"),
    ("unknown field", OK | {"latncy_ms": 5}, 400, "latncy_ms", "latncy_ms"),
    ("no input", {"model": "auto"}, 400, "input", "missing"),
    ("number as input", {"input": 7}, 400, "input", "7"),
    ("null as input", {"input": None}, 400, "input", "None"),
    ("mixed list", {"input": ["a", 7]}, 400, "input[1]", "7"),
    ("empty list", {"input": []}, 400, "input", "empty list"),
    ("empty string", {"input": ""}, 400, "input", "''"),
    ("empty string in list", {"input": ["a", ""]}, 400, "input[1]", "''"),
    ("100 000 texts", {"input": ["a"] * 100_000}, 413, "input", "100000"),
    ("10 MB", {"input": "word " * 2_000_000}, 413, "body", "bytes"),
    ("long, not to be cut", {"input": "a " * 50_000, "truncate": False}, 400, "input", "256"),
    ("token id too large", {"input": [101, 99_999, 102]}, 400, "input[1]", "99999"),
    ("negative token id", {"input": [[5], [5, -1]]}, 400, "input[1][1]", "-1"),
    ("float token id", {"input": [5, 1.5]}, 400, "input[1]", "1.5"),
    ("empty token list", {"input": [[]]}, 400, "input[0]", "[]"),
    ("negative budget", OK | {"latency_ms": -5}, 400, "latency_ms", "-5"),
    ("zero budget", OK | {"latency_ms": 0}, 400, "latency_ms", "0"),
    ("NaN budget", b'{"input": "t", "latency_ms": NaN}', 400, "latency_ms", "nan"),
    ("infinite budget", b'{"input": "t", "latency_ms": Infinity}', 400, "latency_ms", "inf"),
    ("text budget", OK | {"latency_ms": "soon"}, 400, "latency_ms", "soon"),
    ("true as budget", OK | {"latency_ms": True}, 400, "latency_ms", "True"),
    ("unknown quality", OK | {"quality": "great"}, 400, "quality", "great"),
    ("quality over 1", OK | {"quality": 1.5}, 400, "quality", "1.5"),
    ("unknown variant", OK | {"variant": "onnx-int4"}, 404, "variant", "onnx-int4"),
    ("unknown model", OK | {"model": "gpt-2"}, 404, "model", "gpt-2"),
    ("unknown pin", OK | {"model": "auto:onnx-int4"}, 404, "model", "onnx-int4"),
    ("unknown encoding", OK | {"encoding_format": "int4"}, 400, "encoding_format", "int4"),
    ("dimensions 0", OK | {"dimensions": 0}, 400, "dimensions", "0"),
    ("dimensions too many", OK | {"dimensions": 385}, 400, "dimensions", "385"),
    ("dimensions as text", OK | {"dimensions": "8"}, 400, "dimensions", "8"),
    ("truncate as text", OK | {"truncate": "no"}, 400, "truncate", "no"),
    ("lone surrogate", b'{"input": ["a", "b\\ud800"]}', 400, "input[1]", "ud800"),
    ("NUL", {"input": "a\0b"}, 400, "input", "x00"),
    ("invalid UTF-8", b'{"input": "\xff\xfe"}', 400, "body", "not valid JSON"),
]


def is_alive(http: httpx.Client) -> bool:
    return http.post("/v1/embeddings", json=OK).status_code == httpx.codes.OK


@pytest.mark.parametrize(
    ("body", "status", "param", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_is_refused_by_field_and_value(
    http: httpx.Client, body: Any, status: int, param: str | None, words: str
) -> None:
    """The status is right, the error names field and value, and the next request succeeds."""
    if isinstance(body, bytes):
        answer = http.post("/v1/embeddings", content=body, headers=JSON)
    else:
        answer = http.post("/v1/embeddings", json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert is_alive(http)


def test_a_long_text_is_cut_and_says_so(http: httpx.Client) -> None:
    """50 000 tokens are cut at the model's limit; the answer tells which text was."""
    content = http.post("/v1/embeddings", json={"input": ["short", "a " * 50_000]}).json()
    assert content["routing"]["truncated"] == [1]
    assert content["usage"]["prompt_tokens"] == 3 + 256


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("X-Latency-Ms", "nan", 400),
        ("X-Latency-Ms", "-1", 400),
        ("X-Quality", "great", 400),
        ("X-Variant", "onnx-int4", 404),
    ],
)
def test_a_bad_header_is_refused_by_name(
    http: httpx.Client, name: str, value: str, status: int
) -> None:
    """Hints in headers are checked as strictly as in the body."""
    answer = http.post("/v1/embeddings", json=OK, headers={name: value})
    assert answer.status_code == status
    assert value in answer.json()["error"]["message"]


def test_wrong_method_path_and_content_type(http: httpx.Client) -> None:
    """405 with Allow, 404 with the routes, 415 with the content type, each as JSON."""
    wrong_method = http.get("/v1/embeddings")
    assert wrong_method.status_code == httpx.codes.METHOD_NOT_ALLOWED
    assert wrong_method.headers["Allow"] == "POST"
    wrong_path = http.post("/v1/embedding", json=OK)
    assert wrong_path.status_code == httpx.codes.NOT_FOUND
    assert "/v1/embeddings" in wrong_path.json()["error"]["message"]
    wrong_type = http.post("/v1/embeddings", content=b"a", headers={"Content-Type": "text/csv"})
    assert wrong_type.status_code == httpx.codes.UNSUPPORTED_MEDIA_TYPE
    assert "text/csv" in wrong_type.json()["error"]["message"]


def test_a_pin_and_a_higher_floor_conflict(http: httpx.Client) -> None:
    """A pinned variant below the asked floor is refused, never served."""
    cheapest = http.get("/v1/variants").json()["variants"][-1]["variant"]
    answer = http.post("/v1/embeddings", json=OK | {"variant": cheapest, "quality": "best"})
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert cheapest in answer.json()["error"]["message"]
