"""The field that brings what to embed, `input` or `inputs`: texts or token ids, checked one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.errors import BadRequest, PayloadTooLarge, shown

INPUT_HELP = "a string, a list of strings, a list of token ids, or a list of lists of token ids"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What to embed: texts, or token ids (the other is empty)."""

    texts: list[str]
    token_ids: list[list[int]]
    single: bool  # sent bare, not in a list
    field: str = "input"

    def name(self, position: int) -> str:
        """How the client would name one of the texts."""
        return self.field if self.single else f"{self.field}[{position}]"


def parse_input(fields: Mapping[str, Any], *, max_texts: int, field: str = "input") -> Input:
    """Check a field as far as possible without the model.

    Raises:
        BadRequest: names the text or token id.
        PayloadTooLarge: more than `max_texts` texts.
    """
    if field not in fields:
        raise BadRequest(f"{field} is missing; it must be {INPUT_HELP}", param=field)
    value = fields[field]
    if isinstance(value, str):
        return _texts([value], single=True, field=field)
    if not isinstance(value, list):
        raise BadRequest(f"{field} must be {INPUT_HELP}, got {shown(value)}", param=field)
    if not value:
        raise BadRequest(f"{field} is an empty list; it needs one text at least", param=field)
    if is_whole_number(value[0]):
        return _token_lists([value], single=True, field=field)
    if len(value) > max_texts:
        raise PayloadTooLarge(
            f"{field} has {len(value)} texts, the limit is {max_texts} a request", param=field
        )
    if isinstance(value[0], list):
        return _token_lists(value, single=False, field=field)
    return _texts(value, single=False, field=field)


def check_token_range(given: Input, vocab_size: int) -> None:
    """Refuse token ids that the model's vocabulary does not have.

    Raises:
        BadRequest: names the place and the id.
    """
    for position, ids in enumerate(given.token_ids):
        if min(ids) >= 0 and max(ids) < vocab_size:
            continue
        place, token = next((i, t) for i, t in enumerate(ids) if not 0 <= t < vocab_size)
        where = f"{given.name(position)}[{place}]"
        raise BadRequest(
            f"{where} is the token id {token}; the model's are 0 to {vocab_size - 1}", param=where
        )


def is_whole_number(value: object) -> bool:
    """A JSON whole number; true and false are none, though Python counts them in."""
    return isinstance(value, int) and not isinstance(value, bool)


def _texts(texts: list[Any], *, single: bool, field: str) -> Input:
    given = Input(texts=texts, token_ids=[], single=single, field=field)
    for position, text in enumerate(texts):
        name = given.name(position)
        if not isinstance(text, str):
            raise BadRequest(f"{name} must be a string, got {shown(text)}", param=name)
        if not text:
            raise BadRequest(f"{name} is an empty string, got ''", param=name)
        _check_characters(name, text)
    return given


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


def _token_lists(lists: list[Any], *, single: bool, field: str) -> Input:
    given = Input(texts=[], token_ids=lists, single=single, field=field)
    for position, ids in enumerate(lists):
        name = given.name(position)
        if not isinstance(ids, list) or not ids:
            raise BadRequest(
                f"{name} must be a non-empty list of token ids, got {shown(ids)}", param=name
            )
        for place, token in enumerate(ids):
            if not is_whole_number(token):
                where = f"{name}[{place}]"
                raise BadRequest(f"{where} must be a token id, got {shown(token)}", param=where)
    return given
