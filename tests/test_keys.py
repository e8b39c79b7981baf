"""API keys: who may ask, and what all may see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import SettingsError
from serve_app.keys import Keys
from tests.asked import error_of

MakeRouter = Callable[..., Any]


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("# the search team\nalpha\n\n  beta  \n")
    return file


def test_only_known_keys_are_let_in(make_router: MakeRouter, keys_file: Path) -> None:
    """Each key of the file as a bearer token; without one, or with another, 401 and no work."""
    served = make_router(api_keys_file=str(keys_file))
    body = {"input": "a"}
    for key in ("alpha", "beta"):
        headers = {"Authorization": f"Bearer {key}"}
        response = served.ask("POST", "/v1/embeddings", json=body, headers=headers)
        assert response.status_code == 200
    for headers, told in (
        ({}, "no API key"),
        ({"Authorization": "Bearer gamma"}, "not one of this server's"),
        ({"Authorization": "alpha"}, "not one of this server's"),
        ({"Authorization": "Bearer # the search team"}, "not one of this server's"),
        ({"Authorization": "Bearer "}, "not one of this server's"),
    ):
        response = served.ask("POST", "/v1/embeddings", json=body, headers=headers)
        error = error_of(response, 401)
        assert (error["code"], error["param"]) == ("invalid_api_key", "Authorization")
        assert told in error["message"]
        assert "gamma" not in error["message"]
        assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", path, 200) for path in ("/health", "/ready", "/metrics", "/", "/docs")),
        ("GET", "/openapi.json", 200),
        *(("GET", path, 401) for path in ("/v1/variants", "/v1/models", "/info")),
        *(("POST", path, 401) for path in ("/v1/embeddings", "/v1/route", "/embed", "/tokenize")),
        ("POST", "/", 401),
        ("GET", "/nowhere", 404),
    ],
)
def test_probes_and_pages_need_none(
    make_router: MakeRouter, keys_file: Path, method: str, path: str, status: int
) -> None:
    """Health, metrics and pages are for all; what tells of models or computes is not."""
    served = make_router(api_keys_file=str(keys_file))
    assert served.ask(method, path).status_code == status


def test_without_a_file_nobody_needs_a_key(served: Any) -> None:
    """A server for one's own machine takes any key, and none."""
    assert served.embed("a").status_code == 200
    headers = {"Authorization": "Bearer anything"}
    assert served.ask("POST", "/embed", json={"inputs": "a"}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("content", "told"), [(None, "cannot be read"), ("# none\n\n", "has no key")]
)
def test_a_file_without_keys_is_refused(tmp_path: Path, content: str | None, told: str) -> None:
    """A server that was to be locked does not start open."""
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=f"api_keys_file: .*keys {told}"):
        Keys.read(file)
