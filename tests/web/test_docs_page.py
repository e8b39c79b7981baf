"""The page at /docs: the description of the API, drawn."""

from __future__ import annotations

import html
from pathlib import Path

from tests.web.canned import ESCAPED, MARKUP, OPENAPI
from tests.web.site import Site, look


def test_the_real_document_is_rendered(real: Site, tmp_path: Path) -> None:
    """Every route, field and description of a field, and an example that the parser takes."""
    shown = look(f"{real.url}docs", tmp_path)
    text, document = html.unescape(shown.text), real.answers["/openapi.json"][1]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path} {operation['summary']}" in text
    for name, field_ in document["components"]["schemas"]["EmbeddingRequest"]["properties"].items():
        assert f" {name} " in text
        assert field_.get("description", "") in text
    assert """ -d '{"input":"how do I reset my card pin","latency_ms":50}'""" in text
    assert "quality string or number" in text
    assert shown.console == []


def test_a_key_is_asked_for_where_the_document_says_so(site: Site, tmp_path: Path) -> None:
    """With `security` each curl line carries a key, as a variable of the shell."""
    site.answers["/openapi.json"] = (200, OPENAPI | {"security": [{"key": []}]})
    shown = look(f"{site.url}docs", tmp_path)
    assert shown.text.count('-H "Authorization: Bearer $API_KEY"') == 2


def test_the_document_is_rendered(site: Site, tmp_path: Path) -> None:
    """Title, routes, parameters, fields behind references, limits, an example for a shell."""
    shown = look(f"{site.url}docs", tmp_path)
    assert "Canned 7.8.9 What it is for." in shown.text
    assert "POST /v1/embeddings Embed texts. Parameters" in shown.text
    assert "X-Quality header string" in shown.text
    assert "input required string or array of string items ≤ 77 The texts" in shown.text
    assert "latency_ms number or null null &gt; 0 How long the client waits." in shown.text
    assert f"curl -s '{site.url}v1/embeddings'" in shown.text
    assert r"""-d '{"input":"it'\''s"}'""" in shown.text
    assert "200 Vectors. 429 Late." in shown.text
    assert f"Up {ESCAPED}." in shown.text
    assert shown.console == []


def test_a_missing_document_is_said(site: Site, tmp_path: Path) -> None:
    """Without openapi.json the page says so, with the server's answer."""
    site.answers["/openapi.json"] = (404, {"error": {"message": MARKUP}})
    shown = look(f"{site.url}docs", tmp_path)
    assert "openapi.json cannot be had" in shown.text
    assert f'404 Not Found: {{"error": {{"message": "{ESCAPED}"' in shown.text
