"""text-embeddings-inference's routes: its requests, its answers and its errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serve_app import __version__
from serve_app.manifest import Prompts, read_manifest
from tests.asked import HELLO_WORLD, VARIANTS, vector_of
from tests.rungs import change

MakeRouter = Callable[..., Any]


def tei_error(response: httpx.Response, status: int, kind: str) -> str:
    """The message of an error in TEI's two fields."""
    assert response.status_code == status, response.text
    found = response.json()
    assert set(found) == {"error", "error_type"}
    assert found["error_type"] == kind
    return str(found["error"])


@pytest.mark.parametrize("path", ["/embed", "/"])
def test_vectors_come_as_bare_lists(served: Any, path: str) -> None:
    """A text and a list of texts give lists of vectors, those of /v1/embeddings."""
    for inputs in ("hello world", ["hello world"]):
        response = served.ask("POST", path, json={"inputs": inputs})
        assert response.status_code == 200
        assert response.json() == [pytest.approx(vector_of(HELLO_WORLD))]
    two = served.ask("POST", path, json={"inputs": ["a", "hello world"], "truncate": False}).json()
    assert two[1] == pytest.approx(vector_of(HELLO_WORLD))
    shorter = served.ask("POST", path, json={"inputs": "hello world", "dimensions": 3}).json()
    assert np.linalg.norm(shorter[0]) == pytest.approx(1)
    assert len(shorter[0]) == 3


def test_our_hints_come_beside_its_fields(served: Any) -> None:
    """Pin, budget and quality route as they do on /v1, in the body and in headers; headers tell of it."""
    for name in VARIANTS:
        pinned = served.ask("POST", "/embed", json={"inputs": "a", "variant": name})
        assert pinned.headers["X-Variant"] == name
    by_header = served.ask(
        "POST", "/embed", json={"inputs": "hello world"}, headers={"X-Latency-Ms": "300"}
    )
    assert by_header.headers["X-Variant"] == "fake-int8"
    assert int(by_header.headers["X-Compute-Tokens"]) == len(HELLO_WORLD)
    assert int(by_header.headers["X-Total-Time"]) >= int(by_header.headers["X-Inference-Time"]) >= 0


def test_token_ids_go_round(served: Any) -> None:
    """The ids that /tokenize gives, with special tokens or without, have the vector of their text."""
    for special in (True, False):
        body = {"inputs": "hello world", "add_special_tokens": special}
        (pieces,) = served.ask("POST", "/tokenize", json=body).json()
        ids = [piece["id"] for piece in pieces]
        assert ids == (HELLO_WORLD if special else HELLO_WORLD[1:-1])
        for path, field in (("/embed", "inputs"), ("/v1/embeddings", "input")):
            answer = served.ask("POST", path, json={field: ids}).json()
            vector = answer[0] if path == "/embed" else answer["data"][0]["embedding"]
            assert vector == pytest.approx(vector_of(HELLO_WORLD))


def test_tokens_stand_where_they_stand_in_the_text(served: Any) -> None:
    """Places are characters, not bytes; a special token stands nowhere; nothing is cut."""
    text = "é hello"
    (pieces,) = served.ask("POST", "/tokenize", json={"inputs": text}).json()
    assert [p["special"] for p in pieces] == [True, False, False, True]
    assert pieces[0] == {"id": 2, "text": "[CLS]", "special": True, "start": None, "stop": None}
    assert pieces[2] == {"id": 9, "text": "hello", "special": False, "start": 2, "stop": 7}
    long = ["hello " * 1000]
    (pieces,) = served.ask("POST", "/tokenize", json={"inputs": long}).json()
    assert len(pieces) == 1002


def test_a_named_prompt_goes_before_each_text(make_router: MakeRouter, artifacts: Path) -> None:
    """`prompt_name` is one of the checkpoint's prompts, for texts only."""
    for name in VARIANTS:
        checkpoint = read_manifest(artifacts / name).checkpoint
        prompts = Prompts(query="query ", document="", default="")
        change(artifacts / name, checkpoint=replace(checkpoint, prompts=prompts))
    served = make_router(artifacts)
    body = {"inputs": "hello world", "prompt_name": "query"}
    found = served.ask("POST", "/embed", json=body).json()
    assert found == [pytest.approx(vector_of([2, 6, 9, 10, 3]))]
    (pieces,) = served.ask("POST", "/tokenize", json=body).json()
    assert [p["text"] for p in pieces[1:-1]] == ["query", "hello", "world"]
    unknown = served.ask("POST", "/embed", json=body | {"prompt_name": "document"})
    assert "'document'; the model's prompts: query" in tei_error(unknown, 422, "Validation")
    ids = served.ask("POST", "/embed", json=body | {"inputs": [5, 6]})
    assert "token ids" in tei_error(ids, 422, "Validation")


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "told"),
    [
        ("/embed", {}, 422, "Validation", "inputs is missing"),
        ("/embed", {"inputs": []}, 422, "Validation", "inputs is an empty list"),
        ("/embed", {"inputs": ["a", 5]}, 422, "Validation", "inputs[1] must be a string, got 5"),
        ("/embed", {"inputs": "a", "input": "b"}, 422, "Validation", "unknown field 'input'"),
        (
            "/embed",
            {"inputs": "a", "normalize": False},
            422,
            "Validation",
            "normalize must be true",
        ),
        ("/embed", {"inputs": "a", "truncate": 1}, 422, "Validation", "truncate must be true or"),
        (
            "/embed",
            {"inputs": "a", "truncation_direction": "Left"},
            422,
            "Validation",
            "must be 'Right', got 'Left'",
        ),
        ("/embed", {"inputs": [99]}, 422, "Validation", "inputs[0] is the token id 99"),
        (
            "/embed",
            {"inputs": "a " * 999, "truncate": False},
            422,
            "Validation",
            "inputs has more than the model's",
        ),
        ("/embed", {"inputs": "a", "latency_ms": 0}, 422, "Validation", "latency_ms"),
        ("/embed", {"inputs": "a", "variant": "fp4"}, 404, "Validation", "'fp4'"),
        ("/embed", {"inputs": ["a"] * 3000}, 413, "Validation", "3000 texts"),
        ("/embed", {"inputs": "a", "latency_ms": 0.1}, 429, "Overloaded", "not admitted"),
        ("/tokenize", {"inputs": [1, 2]}, 422, "Validation", "inputs must be texts"),
        ("/tokenize", {"inputs": "a", "truncate": True}, 422, "Validation", "'truncate'"),
        ("/", {"inputs": None}, 422, "Validation", "inputs must be a string"),
    ],
)
def test_errors_have_its_two_fields(
    served: Any, path: str, body: dict[str, Any], status: int, kind: str, told: str
) -> None:
    """Status, kind, and the field with its value in the message."""
    assert told in tei_error(served.ask("POST", path, json=body), status, kind)


def test_a_server_that_is_starting_says_so_in_its_words(make_router: MakeRouter) -> None:
    """503 before a replica is up; broken JSON is 422; a wrong method keeps Allow."""
    served = make_router(ready=False)
    tei_error(served.ask("POST", "/embed", json={"inputs": "a"}), 503, "Unhealthy")
    tei_error(served.ask("POST", "/embed", content=b"{"), 422, "Validation")
    wrong = served.ask("GET", "/embed")
    assert "takes POST" in tei_error(wrong, 405, "Validation")
    assert wrong.headers["Allow"] == "POST"
    assert served.ask("PUT", "/").headers["Allow"] == "POST, GET"


def test_a_time_to_come_back_is_told(served: Any) -> None:
    """429 with `Retry-After`, as on /v1."""
    load = served.router._fleet.lanes["fake-int8"].load
    with load.hold(1000), load.call(1000, now_s=time.monotonic()):
        response = served.ask("POST", "/embed", json={"inputs": "hello world", "latency_ms": 300})
    tei_error(response, 429, "Overloaded")
    assert int(response.headers["Retry-After"]) >= 11


def test_info_tells_the_model_and_its_limits(make_router: MakeRouter) -> None:
    """What its clients size their batches by."""
    found = make_router(max_texts=7).ask("GET", "/info").json()
    assert (found["model_id"], found["version"]) == ("tiny", __version__)
    assert found["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (found["max_client_batch_size"], found["auto_truncate"]) == (7, True)
    assert found["variants"] == VARIANTS
    assert found["max_input_length"] > 0
