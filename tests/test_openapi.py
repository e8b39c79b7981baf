"""The server's own description: true to its routes, fields and limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serve_app.api import FIELDS, HEADERS
from serve_app.tei import EMBED_FIELDS, TOKENIZE_FIELDS
from tests.asked import VARIANTS

MakeRouter = Callable[..., Any]
ON_ROOT = "/"  # a page by GET, and TEI's by POST, which stands under /embed


@pytest.fixture
def described(served: Any) -> dict[str, Any]:
    found: dict[str, Any] = served.ask("GET", "/openapi.json").json()
    return found


def test_every_route_is_described(served: Any, described: dict[str, Any]) -> None:
    """No route is missing, none is made up, each by its method."""
    told = {(m.upper(), path) for path, methods in described["paths"].items() for m in methods}
    router = served.router
    there = {("POST", path) for path in router._post if path != ON_ROOT}
    assert told == there | {("GET", path) for path in router._lookups.readers}
    assert described["openapi"].startswith("3.1")


@pytest.mark.parametrize(
    ("schema", "fields"),
    [
        ("EmbeddingRequest", FIELDS),
        ("EmbedRequest", EMBED_FIELDS),
        ("TokenizeRequest", TOKENIZE_FIELDS),
    ],
)
def test_every_field_is_described(
    described: dict[str, Any], schema: str, fields: tuple[str, ...]
) -> None:
    """A body's fields are those that the parser knows."""
    assert set(described["components"]["schemas"][schema]["properties"]) == set(fields)


def test_limits_are_this_servers(make_router: MakeRouter) -> None:
    """Texts, dimensions and variants are those of the running server."""
    schemas = make_router(max_texts=5).ask("GET", "/openapi.json").json()["components"]["schemas"]
    fields = schemas["EmbeddingRequest"]["properties"]
    assert fields["input"]["oneOf"][1]["maxItems"] == 5
    assert fields["dimensions"]["maximum"] == 8
    assert fields["variant"]["enum"] == VARIANTS


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    """A `$ref` names a schema that is there, and the hints' headers are told of."""
    schemas = described["components"]["schemas"]
    found = list(_references(described["paths"]))
    assert len(found) > 6
    assert {ref.removeprefix("#/components/schemas/") for ref in found} <= set(schemas)
    headers = described["paths"]["/v1/embeddings"]["post"]["parameters"]
    assert [h["name"] for h in headers] == list(HEADERS.values())


def test_answers_have_what_is_described(served: Any, described: dict[str, Any]) -> None:
    """A real answer's fields are the description's."""
    schema = described["components"]["schemas"]["EmbeddingResponse"]["properties"]
    answer = served.embed("a").json()
    assert set(answer) == set(schema)
    assert set(answer["routing"]) == set(schema["routing"]["properties"])
    assert set(answer["data"][0]) == set(schema["data"]["items"]["properties"])


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"]
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)
