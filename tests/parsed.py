"""A request's body and headers as the router reads them."""

import json
from typing import Any

from serve_app.api import EmbeddingRequest, parse_request

MAX_TEXTS = 2048
Header = tuple[bytes, bytes]


def parse(body: bytes | dict[str, Any], *headers: Header) -> EmbeddingRequest:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_request({"headers": list(headers)}, content, max_texts=MAX_TEXTS)
