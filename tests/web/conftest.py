"""The pages with canned answers, and with those of a real router."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.web.canned import CANNED
from tests.web.site import Site, serving


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(CANNED) as served:
        yield served


@pytest.fixture
def real(served: Any, site: Site) -> Site:
    """The site with what the real router answers, fake engines below it."""
    body = {"input": ["a text", "another", "a third"], "latency_ms": 5000}
    asked = {
        "/ready": served.ask("GET", "/ready"),
        "/openapi.json": served.ask("GET", "/openapi.json"),
        "/v1/variants": served.ask("GET", "/v1/variants"),
        "/v1/route": served.ask("POST", "/v1/route", json=body),
        "/v1/embeddings": served.ask(
            "POST", "/v1/embeddings", json=body | {"encoding_format": "base64"}
        ),
    }
    site.answers = {path: (found.status_code, found.json()) for path, found in asked.items()}
    site.headers["Content-Security-Policy"] = served.ask("GET", "/").headers[
        "content-security-policy"
    ]
    return site
