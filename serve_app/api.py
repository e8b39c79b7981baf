"""The request as it comes over HTTP, parsed and checked field by field.

It is OpenAI's for embeddings, plus our hints. Every refusal names the field and the value.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import orjson

from serve_app.asgi import Scope, header
from serve_app.errors import (
    SHOWN_VALUE_CHARS,
    BadRequest,
    HintConflict,
    MalformedJson,
    UnknownField,
    UnknownModel,
    shown,
)
from serve_app.inputs import Input, is_whole_number, parse_input
from serve_app.policy.hint import Hint, number_or_text, parse_budget_ms, parse_quality

Encoding = Literal["float", "base64"]

FIELDS = (
    "input",
    "model",
    "encoding_format",
    "dimensions",
    "user",
    "latency_ms",
    "quality",
    "variant",
    "truncate",
)
HEADERS = {"latency_ms": "X-Latency-Ms", "quality": "X-Quality", "variant": "X-Variant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """One `POST /v1/embeddings`, checked as far as possible without the model."""

    input: Input
    model: str | None
    hint: Hint
    sent_as: Mapping[str, str]  # hint → the field or header that brought it
    encoding: Encoding
    dimensions: int | None
    truncate: bool


def parse_request(scope: Scope, body: bytes, *, max_texts: int) -> EmbeddingRequest:
    """Body and headers → request. A field in the body wins over its header.

    Raises:
        BadRequest, PayloadTooLarge: name the field and the value.
    """
    fields = load_fields(body, known=FIELDS)
    parse_text(fields, "user")  # taken for OpenAI's clients, of no use here
    hint, sent_as = parse_hints(scope, fields)
    return EmbeddingRequest(
        input=parse_input(fields, max_texts=max_texts),
        model=parse_text(fields, "model"),
        hint=hint,
        sent_as=sent_as,
        encoding=_parse_encoding(fields.get("encoding_format")),
        dimensions=parse_dimensions(fields.get("dimensions")),
        truncate=parse_flag(fields, "truncate", default=True),
    )


def load_fields(body: bytes, *, known: Collection[str]) -> dict[str, Any]:
    """The fields of a JSON object, none of them unknown.

    Raises:
        BadRequest: names the field, or what the body is instead.
    """
    fields = _load_json(body)
    if not isinstance(fields, dict):
        raise BadRequest(f"the body must be a JSON object, got {shown(fields)}", param="body")
    for name in fields:
        if name not in known:
            raise UnknownField(
                f"unknown field {shown(name)}; known fields: {', '.join(known)}",
                param=name[:SHOWN_VALUE_CHARS],
            )
    return fields


def _load_json(body: bytes) -> object:
    if not body:
        raise MalformedJson(
            'the request has no body; send JSON such as {"input": "text"}', param="body"
        )
    try:
        return cast("object", orjson.loads(body))
    except orjson.JSONDecodeError as strict:
        return _load_lenient(body, strict)


def _load_lenient(body: bytes, strict: orjson.JSONDecodeError) -> object:
    """Python's own parser takes NaN and lone surrogates: then the check of their field names them."""
    try:
        return cast("object", json.loads(body))
    except (ValueError, RecursionError):
        where = f"line {strict.lineno}, column {strict.colno}"
        raise MalformedJson(
            f"the body is not valid JSON: {strict.msg} ({where}), got {shown(body)}", param="body"
        ) from strict


def parse_text(fields: Mapping[str, Any], name: str) -> str | None:
    """A field that may be left out, and else has something in it."""
    value = fields.get(name)
    return None if value is None else _non_empty(value, param=name)


def _non_empty(value: object, *, param: str) -> str:
    if not isinstance(value, str) or not value:
        raise BadRequest(f"{param} must be a non-empty string, got {shown(value)}", param=param)
    return value


@dataclass(frozen=True, slots=True)
class _Sent:
    """A hint as the client sent it, under the client's name for it."""

    value: object
    name: str


def _sent_hints(scope: Scope, fields: Mapping[str, Any]) -> dict[str, _Sent]:
    """The hints of the body, and for those it lacks, of the headers."""
    sent: dict[str, _Sent] = {}
    for field, header_name in HEADERS.items():
        if fields.get(field) is not None:
            sent[field] = _Sent(fields[field], field)
        elif (text := header(scope, header_name.lower().encode())) is not None:
            sent[field] = _Sent(text if field == "variant" else number_or_text(text), header_name)
    return sent


def parse_hints(scope: Scope, fields: Mapping[str, Any]) -> tuple[Hint, dict[str, str]]:
    """The hint of body and headers, and the field or header that brought each part.

    Raises:
        BadRequest: names the field or header and the value.
    """
    sent = _sent_hints(scope, fields)
    budget, quality, variant = (sent.get(field) for field in HEADERS)
    hint = Hint(
        budget_ms=None if budget is None else parse_budget_ms(budget.value, param=budget.name),
        quality=None if quality is None else parse_quality(quality.value, param=quality.name),
        variant=None if variant is None else _non_empty(variant.value, param=variant.name),
    )
    return hint, {field: part.name for field, part in sent.items()}


def _parse_encoding(value: object) -> Encoding:
    if value is None:
        return "float"
    if value in ("float", "base64"):
        return value
    raise BadRequest(
        f"encoding_format must be 'float' or 'base64', got {shown(value)}", param="encoding_format"
    )


def parse_dimensions(value: object) -> int | None:
    """How many of a vector's numbers are wanted; None: all."""
    if value is None:
        return None
    if not is_whole_number(value) or cast("int", value) < 1:
        raise BadRequest(
            f"dimensions must be a whole number above 0, got {shown(value)}", param="dimensions"
        )
    return cast("int", value)


def parse_flag(fields: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """A field that is true or false, or left out."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false, got {shown(value)}", param=name)
    return value


def resolve_model(request: EmbeddingRequest, *, names: Sequence[str]) -> EmbeddingRequest:
    """The request with the pin that its model name may carry as `name:variant`.

    Raises:
        UnknownModel: neither a known name nor one with a variant behind it.
        HintConflict: the name and `variant` pin different variants.
    """
    model, hint = request.model, request.hint
    if model is None or model in names:
        return request
    name, _, pinned = model.rpartition(":")
    if name not in names:
        known = ", ".join(names)
        raise UnknownModel(
            f"no model {shown(model)}; known are {known}, each also with :variant", param="model"
        )
    if hint.variant is None:
        sent_as = {**request.sent_as, "variant": "model"}
        return replace(request, hint=replace(hint, variant=pinned), sent_as=sent_as)
    if hint.variant != pinned:
        raise HintConflict(
            f"model {shown(model)} and variant {shown(hint.variant)} pin different variants",
            param=request.sent_as["variant"],
        )
    return request
