"""The routes of Hugging Face's text-embeddings-inference, in its shapes: `/embed`, `/tokenize`, `/info`.

Its clients work unchanged; our hints may come beside its fields, or in headers. Errors have its two fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from typing import Any

from serve_app import __version__
from serve_app.answers import as_unicode, refusal_headers, routing_headers
from serve_app.api import (
    HEADERS,
    EmbeddingRequest,
    load_fields,
    parse_dimensions,
    parse_flag,
    parse_hints,
    parse_text,
)
from serve_app.asgi import Response, Scope
from serve_app.engines.base import Vectors
from serve_app.engines.tokenization import Piece, Tokenized
from serve_app.errors import (
    BadRequest,
    NotAdmitted,
    NotReady,
    ServeAppError,
    shown,
)
from serve_app.inputs import Input, parse_input
from serve_app.manifest import Checkpoint, Prompts
from serve_app.registry import Ladder
from serve_app.settings import Settings

PATHS = ("/", "/embed", "/tokenize", "/info")  # its clients post to `/` or to `/embed`
EMBED_FIELDS = (
    "inputs",
    "truncate",
    "truncation_direction",
    "normalize",
    "prompt_name",
    "dimensions",
    *HEADERS,
)
TOKENIZE_FIELDS = ("inputs", "add_special_tokens", "prompt_name")
KINDS = ((NotAdmitted, "Overloaded"), (NotReady, "Unhealthy"))


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """One `POST /tokenize`."""

    texts: list[str]
    special: bool  # whether special tokens are wanted


def parse_embed(scope: Scope, body: bytes, *, max_texts: int, prompts: Prompts) -> EmbeddingRequest:
    """Body and headers → the request that `/v1/embeddings` would have made of them.

    Raises:
        BadRequest, PayloadTooLarge: name the field and the value.
    """
    fields = load_fields(body, known=EMBED_FIELDS)
    hint, sent_as = parse_hints(scope, fields)
    _require_unit_length(fields)
    _require_cut_at_the_end(fields)
    return EmbeddingRequest(
        input=_prompted(parse_input(fields, max_texts=max_texts, field="inputs"), fields, prompts),
        model=None,
        hint=hint,
        sent_as=sent_as,
        encoding="float",
        dimensions=parse_dimensions(fields.get("dimensions")),
        truncate=parse_flag(fields, "truncate", default=True),
    )


def parse_tokenize(body: bytes, *, max_texts: int, prompts: Prompts) -> TokenizeRequest:
    """Body → request.

    Raises:
        BadRequest, PayloadTooLarge: name the field and the value.
    """
    fields = load_fields(body, known=TOKENIZE_FIELDS)
    given = parse_input(fields, max_texts=max_texts, field="inputs")
    if given.token_ids:
        raise BadRequest("inputs must be texts: token ids are what comes out", param="inputs")
    return TokenizeRequest(
        texts=_prompted(given, fields, prompts).texts,
        special=parse_flag(fields, "add_special_tokens", default=True),
    )


def _require_unit_length(fields: Mapping[str, Any]) -> None:
    if not parse_flag(fields, "normalize", default=True):
        raise BadRequest(
            "normalize must be true, got False: vectors have unit length here", param="normalize"
        )


def _require_cut_at_the_end(fields: Mapping[str, Any]) -> None:
    side = parse_text(fields, "truncation_direction")
    if side is not None and side.lower() != "right":
        raise BadRequest(
            f"truncation_direction must be 'Right', got {shown(side)}: texts are cut at their end",
            param="truncation_direction",
        )


def _prompted(given: Input, fields: Mapping[str, Any], prompts: Prompts) -> Input:
    """With the checkpoint's prompt of that name before each text."""
    name = parse_text(fields, "prompt_name")
    if name is None:
        return given
    known = {name: prompt for name, prompt in asdict(prompts).items() if prompt}
    if name not in known:
        there_are = ", ".join(known) or "none"
        raise BadRequest(
            f"prompt_name is {shown(name)}; the model's prompts: {there_are}", param="prompt_name"
        )
    if given.token_ids:
        raise BadRequest(
            f"prompt_name {shown(name)} goes before texts, and inputs has token ids",
            param="prompt_name",
        )
    return replace(given, texts=[known[name] + text for text in given.texts])


def embed_response(vectors: Vectors, tokenized: Tokenized, *, routing: dict[str, Any]) -> Response:
    """A list of vectors; what else there is to tell stands in headers, in TEI's names and ours."""
    headers = routing_headers(routing) | {
        "X-Compute-Tokens": str(tokenized.tokens),
        "X-Total-Time": str(math.ceil(routing["total_ms"])),
        "X-Queue-Time": str(math.ceil(routing["queue_ms"])),
        "X-Inference-Time": str(math.ceil(routing["inference_ms"])),
    }
    return Response.json(list(vectors), headers=headers)


def tokenize_response(texts: list[list[Piece]]) -> Response:
    """Of each text its tokens, with where they stand in it in characters."""
    return Response.json(texts)


def info_response(checkpoint: Checkpoint, ladder: Ladder, settings: Settings) -> Response:
    """What is served, and its limits."""
    best = ladder.rungs[0].manifest
    return Response.json(
        {
            "model_id": checkpoint.name,
            "model_sha": checkpoint.digest,
            "model_dtype": best.precision,
            "model_type": {"embedding": {"pooling": checkpoint.pooling}},
            "max_input_length": checkpoint.max_tokens,
            "max_client_batch_size": settings.max_texts,
            "max_batch_tokens": best.profile.batch_tokens,
            "max_concurrent_requests": None,  # bounded by forecasts, not by a number
            "auto_truncate": True,
            "version": __version__,
            "variants": [rung.manifest.variant for rung in ladder.rungs],
        }
    )


def error_response(error: ServeAppError) -> Response:
    """TEI's error object: 422 for what is wrong in a request."""
    theirs = error.status < HTTPStatus.INTERNAL_SERVER_ERROR
    otherwise = "Validation" if theirs else "Backend"
    kind = next((name for of, name in KINDS if isinstance(error, of)), otherwise)
    malformed = isinstance(error, BadRequest)
    status = HTTPStatus.UNPROCESSABLE_ENTITY if malformed else error.status
    content = {"error": as_unicode(error.message), "error_type": kind}
    return Response.json(content, status=status, headers=refusal_headers(error))
