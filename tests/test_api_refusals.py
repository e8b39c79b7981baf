"""Requests that are refused, each by field and value: headers, bodies, texts, token ids."""

from typing import Any

import pytest

from serve_app.errors import BadRequest, ServeAppError
from serve_app.inputs import Input, check_token_range
from tests.parsed import MAX_TEXTS, Header, parse


def _refusal(body: bytes | dict[str, Any], *headers: Header) -> ServeAppError:
    with pytest.raises(ServeAppError) as refused:
        parse(body, *headers)
    return refused.value


@pytest.mark.parametrize(
    ("header", "param", "shown"),
    [
        ((b"x-latency-ms", b"soon"), "X-Latency-Ms", "'soon'"),
        ((b"x-latency-ms", b"-3"), "X-Latency-Ms", "-3.0"),
        ((b"x-latency-ms", b"nan"), "X-Latency-Ms", "nan"),
        ((b"x-latency-ms", b"inf"), "X-Latency-Ms", "inf"),
        ((b"x-latency-ms", b""), "X-Latency-Ms", "''"),
        ((b"x-quality", b"great"), "X-Quality", "'great'"),
        ((b"x-quality", b"2"), "X-Quality", "2.0"),
        ((b"x-quality", b"\xe9"), "X-Quality", "'é'"),
    ],
)
def test_a_bad_header_is_refused_by_its_own_name(header: Header, param: str, shown: str) -> None:
    """Who sent a header is told of the header, not of a field that is not in the body."""
    error = _refusal({"input": "a"}, header)
    assert (error.status, error.param) == (400, param)
    assert error.message.startswith(param)
    assert shown in error.message


@pytest.mark.parametrize(
    ("body", "status", "param", "shown"),
    [
        (b"", 400, "body", "no body"),
        (b"{", 400, "body", "b'{'"),
        (b'{"input": "a"', 400, "body", "line 1, column 14"),
        (b"input=a", 400, "body", "b'input=a'"),
        (b'{"input": "\xff"}', 400, "body", "xff"),
        (b"[" * 100_000, 400, "body", "100003 characters"),
        (b'["a"]', 400, "body", "['a']"),
        (b'"a"', 400, "body", "'a'"),
        (b"null", 400, "body", "None"),
        (b"NaN", 400, "body", "nan"),
        (b"{}", 400, "input", "input is missing"),
        (b'{"input": "a", "inptu": 1}', 400, "inptu", "'inptu'"),
        (b'{"input": "a", "latency_ms": NaN}', 400, "latency_ms", "nan"),
        (b'{"input": "a", "latency_ms": Infinity}', 400, "latency_ms", "inf"),
        (b'{"input": "a", "latency_ms": 1e999}', 400, "latency_ms", "inf"),
        (b'{"input": "a", "quality": NaN}', 400, "quality", "nan"),
        (b'{"input": "\\ud800"}', 400, "input", r"'\ud800' at character 0"),
        (b'{"input": ["a", "b\\udfff"]}', 400, "input[1]", r"'\udfff' at character 1"),
        (b'{"input": "a", "\\ud800": 1}', 400, "\ud800", r"'\ud800'"),
    ],
)
def test_a_broken_body_is_refused(body: bytes, status: int, param: str, shown: str) -> None:
    """What no JSON encoder would send: broken, alien or half-legal JSON, named with what came."""
    error = _refusal(body)
    assert (error.status, error.param) == (status, param)
    assert shown in error.message


@pytest.mark.parametrize(
    ("fields", "status", "param", "shown"),
    [
        ({"input": None}, 400, "input", "None"),
        ({"input": 5}, 400, "input", "5"),
        ({"input": True}, 400, "input", "True"),
        ({"input": {"text": "a"}}, 400, "input", "{'text': 'a'}"),
        ({"input": []}, 400, "input", "empty list"),
        ({"input": ""}, 400, "input", "''"),
        ({"input": ["a", ""]}, 400, "input[1]", "''"),
        ({"input": ["a", 5]}, 400, "input[1]", "5"),
        ({"input": ["a", None]}, 400, "input[1]", "None"),
        ({"input": ["a", ["b"]]}, 400, "input[1]", "['b']"),
        ({"input": [True]}, 400, "input[0]", "True"),
        ({"input": [1.5]}, 400, "input[0]", "1.5"),
        ({"input": [5, "a"]}, 400, "input[1]", "'a'"),
        ({"input": [5, 1.5]}, 400, "input[1]", "1.5"),
        ({"input": [5, True]}, 400, "input[1]", "True"),
        ({"input": [[]]}, 400, "input[0]", "[]"),
        ({"input": [[5], []]}, 400, "input[1]", "[]"),
        ({"input": [[5], "a"]}, 400, "input[1]", "'a'"),
        ({"input": [[5], [6, "a"]]}, 400, "input[1][1]", "'a'"),
        ({"input": ["a"] * 100_000}, 413, "input", "100000"),
        ({"input": ["a"] * (MAX_TEXTS + 1)}, 413, "input", "2049 texts, the limit is 2048"),
        ({"input": [[5]] * (MAX_TEXTS + 1)}, 413, "input", "2049"),
        ({"input": "a\0b"}, 400, "input", r"'\x00', at character 1"),
        ({"input": ["a", "\0"]}, 400, "input[1]", r"'\x00', at character 0"),
        ({"model": 5}, 400, "model", "5"),
        ({"model": ""}, 400, "model", "''"),
        ({"model": ["m"]}, 400, "model", "['m']"),
        ({"encoding_format": "int8"}, 400, "encoding_format", "'int8'"),
        ({"encoding_format": "Base64"}, 400, "encoding_format", "'Base64'"),
        ({"encoding_format": 1}, 400, "encoding_format", "1"),
        ({"encoding_format": ["float"]}, 400, "encoding_format", "['float']"),
        ({"dimensions": 0}, 400, "dimensions", "0"),
        ({"dimensions": -1}, 400, "dimensions", "-1"),
        ({"dimensions": 8.0}, 400, "dimensions", "8.0"),
        ({"dimensions": "8"}, 400, "dimensions", "'8'"),
        ({"dimensions": True}, 400, "dimensions", "True"),
        ({"latency_ms": 0}, 400, "latency_ms", "0"),
        ({"latency_ms": -5}, 400, "latency_ms", "-5"),
        ({"latency_ms": "soon"}, 400, "latency_ms", "'soon'"),
        ({"latency_ms": True}, 400, "latency_ms", "True"),
        ({"latency_ms": [5]}, 400, "latency_ms", "[5]"),
        ({"quality": "great"}, 400, "quality", "'great'"),
        ({"quality": 1.5}, 400, "quality", "1.5"),
        ({"quality": -0.5}, 400, "quality", "-0.5"),
        ({"quality": True}, 400, "quality", "True"),
        ({"quality": ["best"]}, 400, "quality", "['best']"),
        ({"quality": {"floor": 0.9}}, 400, "quality", "{'floor': 0.9}"),
        ({"variant": 5}, 400, "variant", "5"),
        ({"variant": ""}, 400, "variant", "''"),
        ({"variant": ["v"]}, 400, "variant", "['v']"),
        ({"truncate": "yes"}, 400, "truncate", "'yes'"),
        ({"truncate": 1}, 400, "truncate", "1"),
        ({"dimension": 8}, 400, "dimension", "'dimension'; known fields: input, model"),
        pytest.param({"latency_ms": "200"}, 400, "latency_ms", "'200'"),
        pytest.param({"user": 5}, 400, "user", "5"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_a_bad_value_is_refused_by_field_and_value(
    fields: dict[str, Any], status: int, param: str, shown: str
) -> None:
    """Each refusal has its status, the offending field, and the value that was sent."""
    error = _refusal({"input": "a"} | fields)
    assert (error.status, error.param) == (status, param)
    assert shown in error.message


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "malformed_json"),
        (b"", "malformed_json"),
        (b'{"input": "a", "x": 1}', "unknown_field"),
        (b'{"input": 5}', "invalid_value"),
    ],
)
def test_the_code_tells_the_kinds_of_refusal_apart(body: bytes, code: str) -> None:
    """A program reads the code, a person the message."""
    assert _refusal(body).code == code


def test_a_huge_value_is_not_sent_back_whole() -> None:
    """A message shows the beginning of a value and its length."""
    error = _refusal({"input": "a", "quality": "x" * 1_000_000})
    assert "1000002 characters" in error.message
    assert len(error.message) < 300


def test_a_huge_field_name_is_not_sent_back_whole() -> None:
    """What holds for values holds for names."""
    error = _refusal({"input": "a", "x" * 1_000_000: 1})
    assert len(error.message) + len(error.param or "") < 500


def test_a_deep_value_is_refused_as_any_other() -> None:
    """Nesting just below what the JSON parser takes is still only a wrong value."""
    deep = b"[" * 1020 + b"]" * 1020
    assert _refusal(b'{"input": "a", "quality": ' + deep + b"}").status == 400


@pytest.mark.parametrize("count", [1, MAX_TEXTS])
def test_the_limit_of_texts_itself_is_allowed(count: int) -> None:
    """2048 texts are within a limit of 2048."""
    assert len(parse({"input": ["a"] * count}).input.texts) == count


def test_one_text_of_many_token_ids_is_one_text() -> None:
    """The limit counts texts, not the token ids of one."""
    assert parse({"input": [5] * (MAX_TEXTS + 1)}).input.token_ids == [[5] * (MAX_TEXTS + 1)]


@pytest.mark.parametrize(
    ("lists", "param", "shown"),
    [
        ([[5, -1]], "input[0][1]", "-1"),
        ([[14]], "input[0][0]", "14; the model's are 0 to 13"),
        ([[5], [6, 7, 10**12]], "input[1][2]", "1000000000000"),
        ([[5], [-1, 99]], "input[1][0]", "-1"),
        ([[5], [0, 99]], "input[1][1]", "99"),
    ],
)
def test_a_token_id_outside_the_vocabulary_is_refused(
    lists: list[list[int]], param: str, shown: str
) -> None:
    """Below 0 or at the size of the vocabulary and above: place, id and range are named."""
    with pytest.raises(BadRequest) as refused:
        check_token_range(Input(texts=[], token_ids=lists, single=False), 14)
    assert refused.value.param == param
    assert shown in refused.value.message


def test_the_whole_vocabulary_is_allowed() -> None:
    """The first and the last id pass."""
    check_token_range(Input(texts=[], token_ids=[[0, 13], [13]], single=False), 14)
