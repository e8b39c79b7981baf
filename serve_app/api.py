"""The request as it comes over HTTP, parsed and checked field by field.

It is OpenAI's for embeddings, plus our hints. Every refusal names the field and the value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import orjson

from serve_app.asgi import Scope, header
from serve_app.errors import (
    BadRequest,
    HintConflict,
    MalformedJson,
    PayloadTooLarge,
    UnknownField,
    UnknownModel,
    shown,
)
from serve_app.policy.hint import Hint, parse_budget_ms, parse_quality

Encoding = Literal["float", "base64"]
Texts = list[str]
TokenLists = list[list[int]]

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
INPUT_HELP = "a string, a list of strings, a list of token ids, or a list of lists of token ids"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """One `POST /v1/embeddings`, checked as far as possible without the model."""

    texts: Texts | None
    token_ids: TokenLists | None
    model: str | None
    hint: Hint
    encoding: Encoding
    dimensions: int | None
    truncate: bool


def parse_request(scope: Scope, body: bytes, *, max_texts: int) -> EmbeddingRequest:
    """Body and headers → request. A field in the body wins over its header.

    Raises:
        BadRequest, PayloadTooLarge: name the field and the value.
    """
    fields = _load_json(body)
    if not isinstance(fields, dict):
        raise BadRequest(f"the body must be a JSON object, got {shown(fields)}", param="body")
    for name in fields:
        if name not in FIELDS:
            known = ", ".join(FIELDS)
            raise UnknownField(f"unknown field {shown(name)}; known fields: {known}", param=name)
    texts, token_ids = _parse_input(fields, max_texts=max_texts)
    return EmbeddingRequest(
        texts=texts,
        token_ids=token_ids,
        model=_parse_text_field(fields, "model"),
        hint=_parse_hint(scope, fields),
        encoding=_parse_encoding(fields.get("encoding_format")),
        dimensions=_parse_dimensions(fields.get("dimensions")),
        truncate=_parse_truncate(fields.get("truncate")),
    )


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


def _parse_input(
    fields: Mapping[str, Any], *, max_texts: int
) -> tuple[Texts | None, TokenLists | None]:
    if "input" not in fields:
        raise BadRequest(f"input is missing; it must be {INPUT_HELP}", param="input")
    value = fields["input"]
    if isinstance(value, str):
        return _check_texts([value], single=True), None
    if not isinstance(value, list):
        raise BadRequest(f"input must be {INPUT_HELP}, got {shown(value)}", param="input")
    if not value:
        raise BadRequest("input is an empty list; it needs one text at least", param="input")
    if _is_token_id(value[0]):
        return None, _check_token_lists([value], single=True)
    if len(value) > max_texts:
        raise PayloadTooLarge(
            f"input has {len(value)} texts, the limit is {max_texts} a request", param="input"
        )
    if isinstance(value[0], list):
        return None, _check_token_lists(value, single=False)
    return _check_texts(value, single=False), None


def _check_texts(texts: list[Any], *, single: bool) -> Texts:
    for position, text in enumerate(texts):
        name = "input" if single else f"input[{position}]"
        if not isinstance(text, str):
            raise BadRequest(f"{name} must be a string, got {shown(text)}", param=name)
        if not text:
            raise BadRequest(f"{name} is an empty string, got ''", param=name)
        _check_characters(name, text)
    return texts


def _check_characters(name: str, text: str) -> None:
    """Lone surrogates are no Unicode text; a NUL means binary data that strayed in."""
    nul = text.find("\0")
    if nul >= 0:
        raise BadRequest(f"{name} has a NUL, '\\x00', at character {nul}", param=name)
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        lone = shown(text[error.start])
        raise BadRequest(
            f"{name} has the lone surrogate {lone} at character {error.start}", param=name
        ) from error


def _is_token_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_token_lists(lists: list[Any], *, single: bool) -> TokenLists:
    for position, ids in enumerate(lists):
        name = "input" if single else f"input[{position}]"
        if not isinstance(ids, list) or not ids:
            raise BadRequest(
                f"{name} must be a non-empty list of token ids, got {shown(ids)}", param=name
            )
        for place, token in enumerate(ids):
            if not _is_token_id(token):
                where = f"{name}[{place}]"
                raise BadRequest(f"{where} must be a token id, got {shown(token)}", param=where)
    return lists


def check_token_range(lists: TokenLists, vocab_size: int) -> None:
    """Refuse token ids that the model's vocabulary does not have.

    Raises:
        BadRequest: names the place and the id.
    """
    for position, ids in enumerate(lists):
        if min(ids) >= 0 and max(ids) < vocab_size:
            continue
        place, token = next((i, t) for i, t in enumerate(ids) if not 0 <= t < vocab_size)
        where = f"input[{position}][{place}]" if len(lists) > 1 else f"input[{place}]"
        raise BadRequest(
            f"{where} is the token id {token}; the model's are 0 to {vocab_size - 1}", param=where
        )


def _parse_text_field(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and (not isinstance(value, str) or not value):
        raise BadRequest(f"{name} must be a non-empty string, got {shown(value)}", param=name)
    return value


def _parse_hint(scope: Scope, fields: Mapping[str, Any]) -> Hint:
    """The hints of the body, and for those it lacks, of the headers; a pin in `model` too."""
    sent: dict[str, tuple[object, str]] = {}
    for name, header_name in HEADERS.items():
        if fields.get(name) is not None:
            sent[name] = (fields[name], name)
        elif (value := header(scope, header_name.lower().encode())) is not None:
            sent[name] = (value, header_name)
    variant = _parse_text_field(fields, "variant")
    if variant is None and "variant" in sent:
        variant = str(sent["variant"][0])
    return Hint(
        budget_ms=_with_name(parse_budget_ms, sent.get("latency_ms")),
        quality=_with_name(parse_quality, sent.get("quality")),
        variant=variant,
    )


def _with_name(parse: Any, sent: tuple[object, str] | None) -> Any:
    return None if sent is None else parse(sent[0], param=sent[1])


def _parse_encoding(value: object) -> Encoding:
    if value is None:
        return "float"
    if value in ("float", "base64"):
        return value
    raise BadRequest(
        f"encoding_format must be 'float' or 'base64', got {shown(value)}", param="encoding_format"
    )


def _parse_dimensions(value: object) -> int | None:
    if value is None:
        return None
    if not _is_token_id(value) or cast("int", value) < 1:
        raise BadRequest(
            f"dimensions must be a whole number above 0, got {shown(value)}", param="dimensions"
        )
    return cast("int", value)


def _parse_truncate(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, bool):
        raise BadRequest(f"truncate must be true or false, got {shown(value)}", param="truncate")
    return value


def resolve_model(request: EmbeddingRequest, *, names: Sequence[str]) -> Hint:
    """The request's hint, with the pin that its model name may carry as `name:variant`.

    Raises:
        UnknownModel: neither a known name nor one with a variant behind it.
        HintConflict: the name and `variant` pin different variants.
    """
    model, hint = request.model, request.hint
    if model is None or model in names:
        return hint
    name, _, pinned = model.rpartition(":")
    if name not in names:
        known = ", ".join(names)
        raise UnknownModel(
            f"no model {shown(model)}; known are {known}, each also with :variant", param="model"
        )
    if hint.variant not in (None, pinned):
        raise HintConflict(
            f"model {shown(model)} and variant {shown(hint.variant)} pin different variants",
            param="variant",
        )
    return replace(hint, variant=pinned)
