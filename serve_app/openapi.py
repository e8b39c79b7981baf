"""The server's description in OpenAPI 3.1, with this server's own limits: what `/openapi.json` answers."""

from __future__ import annotations

from typing import Any

from serve_app import __version__
from serve_app.api import HEADERS
from serve_app.manifest import Checkpoint
from serve_app.registry import Ladder
from serve_app.settings import Settings

Json = dict[str, Any]

EXAMPLE = "how do I reset my card pin"
OPENAI, TEI = "embeddings", "text-embeddings-inference"
LOOKING, PEOPLE = "what is served", "for people"
STATUSES = {
    400: "malformed; the message names the field and the value",
    401: "no API key, or one that the server does not know, where it asks for one",
    404: "no such model or variant",
    413: "too large",
    415: "the body says that it is not JSON",
    422: "malformed; the message names the field and the value",
    429: "not admitted, nothing was computed; Retry-After says when to come back, where that helps",
    503: "no replica is up yet",
    504: "admitted, but the budget passed before the vectors were there",
}


def openapi(checkpoint: Checkpoint, ladder: Ladder, settings: Settings) -> Json:
    """The whole document.

    Args:
        checkpoint: the model.
        ladder: its deployed variants.
        settings: the server's limits.
    """
    schemas = _schemas(checkpoint, ladder, settings)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Embeddings within a budget",
            "version": __version__,
            "description": f"Vectors of {checkpoint.name} from the best variant that meets each request's "
            "latency budget or quality.",
        },
        "paths": _embedding_paths() | _tei_paths() | _looking_paths() | _pages(),
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        **({"security": [{"key": []}]} if settings.api_keys_file else {}),
    }


def _embedding_paths() -> Json:
    return {
        "/v1/embeddings": _post(
            OPENAI,
            "Vectors of texts",
            "OpenAI's request and answer, with three hints that decide which variant computes. The answer's "
            "`routing` and its X- headers tell which one did, and how long it took.",
            body="EmbeddingRequest",
            answer="EmbeddingResponse",
            errors=(400, 401, 404, 413, 415, 429, 503, 504),
        ),
        "/v1/route": _post(
            OPENAI,
            "The decision without the work",
            "What /v1/embeddings would do with this request now: forecasts of all variants, the chosen one, and "
            "why each other was rejected.",
            body="EmbeddingRequest",
            answer="Route",
            errors=(400, 401, 404, 413, 415, 503),
        ),
    }


def _tei_paths() -> Json:
    told = "As text-embeddings-inference has it; our hints may come beside its fields. POST / is the same."
    errors = (401, 404, 413, 415, 422, 429, 503, 504)
    return {
        "/embed": _post(
            TEI, "Vectors of texts", told, body="EmbedRequest", answer="Vectors", errors=errors
        ),
        "/tokenize": _post(
            TEI,
            "Tokens of texts",
            "Uncut, with their place in the text. Their ids are what /v1/embeddings and /embed take in place of texts.",
            body="TokenizeRequest",
            answer="Tokens",
            errors=(401, 413, 415, 422),
        ),
        "/info": _get(TEI, "The model and its limits"),
    }


def _looking_paths() -> Json:
    return {
        "/v1/models": _get(LOOKING, "The names of the model, its dimensions, limits and prompts"),
        "/v1/variants": _get(
            LOOKING,
            "Each deployed variant: fidelity, profile, replicas, load; and what is not on the ladder, and why",
        ),
        "/health": _get(LOOKING, "200 while the process lives"),
        "/ready": _get(LOOKING, "200 once each variant has a replica, 503 before"),
        "/metrics": _get(LOOKING, "For Prometheus", kind="text/plain"),
    }


def _pages() -> Json:
    return {
        "/": _get(PEOPLE, "The playground", kind="text/html"),
        "/docs": _get(PEOPLE, "This description, as a page", kind="text/html"),
        "/openapi.json": _get(PEOPLE, "This description"),
    }


def _post(
    tag: str, summary: str, description: str, *, body: str, answer: str, errors: tuple[int, ...]
) -> Json:
    headers = [] if body == "TokenizeRequest" else [_hint_header(*pair) for pair in HEADERS.items()]
    return {
        "post": {
            "tags": [tag],
            "summary": summary,
            "description": description,
            "parameters": headers,
            "requestBody": {"required": True, "content": _json(body)},
            "responses": {
                "200": {"description": "done", "content": _json(answer)},
                **{str(status): {"description": STATUSES[status]} for status in errors},
            },
        }
    }


def _get(tag: str, summary: str, *, kind: str = "application/json") -> Json:
    answer = {"description": "done", "content": {kind: {}}}
    return {"get": {"tags": [tag], "summary": summary, "responses": {"200": answer}}}


def _json(schema: str) -> Json:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _hint_header(field: str, name: str) -> Json:
    kind = "number" if field == "latency_ms" else "string"
    return {
        "name": name,
        "in": "header",
        "required": False,
        "schema": {"type": kind},
        "description": f"as the field {field}, for clients that cannot change the body",
    }


def _schemas(checkpoint: Checkpoint, ladder: Ladder, settings: Settings) -> Json:
    variants = [rung.manifest.variant for rung in ladder.rungs]
    texts = _texts(settings)
    hints = _hints(settings, variants)
    dimensions = {
        "type": "integer",
        "minimum": 1,
        "maximum": checkpoint.dims,
        "description": "so many of a vector's first numbers, brought back to unit length",
    }
    truncate = {
        "type": "boolean",
        "default": True,
        "description": f"cut texts at {checkpoint.max_tokens} tokens, and say so; false: refuse them",
    }
    return {
        "EmbeddingRequest": _object(
            {
                "input": texts,
                "model": {
                    "type": "string",
                    "description": f"{checkpoint.name}, auto, an alias, or NAME:VARIANT; may be left out",
                },
                "encoding_format": {"enum": ["float", "base64"], "default": "float"},
                "dimensions": dimensions,
                "user": {"type": "string", "description": "taken, and not used"},
                **hints,
                "truncate": truncate,
            },
            required="input",
        ),
        "EmbedRequest": _object(
            {
                "inputs": texts,
                "truncate": truncate,
                "truncation_direction": {"enum": ["Right"]},
                "normalize": {"enum": [True], "description": "vectors have unit length here"},
                "prompt_name": _prompt_name(checkpoint),
                "dimensions": dimensions,
                **hints,
            },
            required="inputs",
        ),
        "TokenizeRequest": _object(
            {
                "inputs": texts,
                "add_special_tokens": {"type": "boolean", "default": True},
                "prompt_name": _prompt_name(checkpoint),
            },
            required="inputs",
        ),
        **_answers(checkpoint),
    }


def _texts(settings: Settings) -> Json:
    ids = {"type": "array", "items": {"type": "integer"}}
    return {
        "description": f"a text, or up to {settings.max_texts} of them; or token ids as /tokenize returns them",
        "oneOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}, "maxItems": settings.max_texts},
            ids,
            {"type": "array", "items": ids, "maxItems": settings.max_texts},
        ],
        "examples": [EXAMPLE],
    }


def _hints(settings: Settings, variants: list[str]) -> Json:
    neither = f"without any hint {settings.default_quality} and {settings.default_latency_ms:g} ms"
    return {
        "latency_ms": {
            "type": "number",
            "exclusiveMinimum": 0,
            "description": "the budget, from arrival to answer: the best variant whose p95 forecast fits it; "
            + neither,
            "examples": [50],
        },
        "quality": {
            "oneOf": [
                {"enum": ["best", "balanced", "fast"]},
                {"type": "number", "minimum": 0, "maximum": 1},
            ],
            "description": "a floor of fidelity: the cheapest variant at or above it; balanced is 0.99, fast has none",
        },
        "variant": {"enum": variants, "description": "this one and no other"},
    }


def _prompt_name(checkpoint: Checkpoint) -> Json:
    prompts = checkpoint.prompts
    named = {"query": prompts.query, "document": prompts.document, "default": prompts.default}
    known = [name for name, prompt in named.items() if prompt]
    told = "the model's prompt of that name goes before each text"
    if not known:
        return {"type": "string", "description": f"{told}; this model has none"}
    return {"enum": known, "description": told}


def _answers(checkpoint: Checkpoint) -> Json:
    vector = {"type": "array", "items": {"type": "number"}, "maxItems": checkpoint.dims}
    number, text = {"type": "number"}, {"type": "string"}
    routing = {
        "variant": text,
        "fidelity": number,
        "reason": text,
        "predicted_ms": number,
        "budget_ms": {"type": ["number", "null"]},
        "queue_ms": number,
        "inference_ms": number,
        "total_ms": number,
        "within_budget": {"type": ["boolean", "null"]},
        "truncated": {"type": "array", "items": {"type": "integer"}},
    }
    item = {
        "object": {"const": "embedding"},
        "index": {"type": "integer"},
        "embedding": {"oneOf": [vector, {"type": "string", "contentEncoding": "base64"}]},
    }
    usage = {"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}}
    token = {
        "id": {"type": "integer"},
        "text": text,
        "special": {"type": "boolean"},
        "start": {"type": ["integer", "null"]},
        "stop": {"type": ["integer", "null"]},
    }
    return {
        "EmbeddingResponse": _object(
            {
                "object": {"const": "list"},
                "data": {"type": "array", "items": _object(item)},
                "model": text,
                "usage": _object(usage),
                "routing": _object(routing),
            }
        ),
        "Route": _object(
            {
                "admitted": {"type": "boolean"},
                "variant": {"type": ["string", "null"]},
                "reason": text,
                "forecasts": {"type": "array", "items": {"type": "object"}},
                "rejected": {
                    "type": "array",
                    "items": _object({"variant": text, "reason": text}),
                },
            }
        ),
        "Vectors": {"type": "array", "items": vector},
        "Tokens": {"type": "array", "items": {"type": "array", "items": _object(token)}},
    }


def _object(properties: Json, *, required: str | None = None) -> Json:
    return {
        "type": "object",
        "properties": properties,
        **({"required": [required]} if required else {}),
    }
