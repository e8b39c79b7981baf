"""What the tests of the router expect of an answer, and the words of its tiny vocabulary."""

from typing import Any

import httpx
import numpy as np

from serve_app.engines.fake_engine import FakeEngine

VARIANTS = ["fake-fp32", "fake-bf16", "fake-int8"]
HELLO_WORLD = [2, 9, 10, 3]  # with its special tokens; forecast at p95 4800, 480 and 48 ms


def vector_of(ids: list[int]) -> list[float]:
    """The vector of one text, as token ids with special tokens."""
    return FakeEngine(dims=8).embed([np.array(ids, dtype=np.int32)])[0].tolist()


def variant_of(response: httpx.Response) -> str:
    """The variant that a request met; it must have been answered."""
    assert response.status_code == 200, response.text
    return str(response.json()["routing"]["variant"])


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object of an answer with this status; always JSON, always all four fields."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)
