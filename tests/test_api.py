"""A request as it comes over HTTP: what is understood of body, headers and the model's name."""

import pytest

from serve_app.api import FIELDS, EmbeddingRequest, resolve_model
from serve_app.errors import HintConflict, UnknownModel
from serve_app.inputs import Input
from serve_app.policy.hint import Hint, Quality
from tests.parsed import parse


@pytest.mark.parametrize(
    ("value", "texts", "token_ids"),
    [
        ("hello", ["hello"], []),
        (["a", "b"], ["a", "b"], []),
        ([5, 6], [], [[5, 6]]),
        ([[5], [6, 7]], [], [[5], [6, 7]]),
        (["é 漢字 🙂"], ["é 漢字 🙂"], []),
        (" ", [" "], []),
    ],
)
def test_input_comes_in_four_shapes(value: object, texts: object, token_ids: object) -> None:
    """A string, a list of strings, token ids, and lists of token ids; one text or many."""
    request = parse({"input": value})
    assert (request.input.texts, request.input.token_ids) == (texts, token_ids)


def test_input_alone_is_enough() -> None:
    """Everything else has a default: floats, whole vectors, truncation, and no hint."""
    assert parse({"input": "a"}) == EmbeddingRequest(
        input=Input(texts=["a"], token_ids=[], single=True),
        model=None,
        hint=Hint(),
        sent_as={},
        encoding="float",
        dimensions=None,
        truncate=True,
    )


def test_every_field_is_understood() -> None:
    """OpenAI's fields and ours arrive in their places."""
    request = parse(
        {
            "input": "a",
            "model": "m",
            "encoding_format": "base64",
            "dimensions": 3,
            "user": "u",
            "latency_ms": 50,
            "quality": "best",
            "variant": "v",
            "truncate": False,
        }
    )
    hint = Hint(budget_ms=50.0, quality=Quality(best=True), variant="v")
    assert (request.model, request.hint, request.encoding) == ("m", hint, "base64")
    assert (request.dimensions, request.truncate) == (3, False)


@pytest.mark.parametrize("name", [n for n in FIELDS if n != "input"])
def test_null_is_as_good_as_absent(name: str) -> None:
    """Clients that send all their fields send null for those that nobody set."""
    assert parse({"input": "a", name: None}) == parse({"input": "a"})


HINT_HEADERS = ((b"x-latency-ms", b"50"), (b"x-quality", b"0.99"), (b"x-variant", b"v"))


def test_headers_bring_the_same_hints_as_the_body() -> None:
    """A client that cannot change the body sends headers to the same effect."""
    body = {"input": "a", "latency_ms": 50, "quality": 0.99, "variant": "v"}
    assert parse({"input": "a"}, *HINT_HEADERS).hint == parse(body).hint


def test_the_body_wins_over_its_header_field_by_field() -> None:
    """A field of the body replaces its own header and leaves the others."""
    hint = parse({"input": "a", "latency_ms": 7}, *HINT_HEADERS).hint
    assert hint == Hint(budget_ms=7.0, quality=Quality(floor=0.99), variant="v")


def test_a_null_in_the_body_leaves_the_header() -> None:
    """Null is absent, so the header speaks."""
    assert parse({"input": "a", "quality": None}, *HINT_HEADERS).hint.quality == Quality(floor=0.99)


NAMES = ("tiny", "alias", "auto")


def _resolve(model: str | None, variant: str | None = None) -> Hint:
    fields = {"input": "a", "model": model, "variant": variant, "latency_ms": 9}
    return resolve_model(parse(fields), names=NAMES).hint


@pytest.mark.parametrize(
    ("model", "variant", "pinned"),
    [
        (None, None, None),
        ("tiny", None, None),
        ("alias", None, None),
        ("auto", None, None),
        ("tiny", "v", "v"),
        ("tiny:v", None, "v"),
        ("alias:v", None, "v"),
        ("auto:v", "v", "v"),
    ],
)
def test_a_models_name_may_carry_the_pin(
    model: str | None, variant: str | None, pinned: str | None
) -> None:
    """A known name, with or without a variant behind it; the other hints stay."""
    assert _resolve(model, variant) == Hint(budget_ms=9.0, variant=pinned)


@pytest.mark.parametrize("model", ["gpt", "gpt:v", "Tiny", ":v", "tiny "])
def test_an_unknown_model_is_refused_with_the_known_ones(model: str) -> None:
    """404, the name that was sent, and the names that exist."""
    with pytest.raises(UnknownModel) as refused:
        _resolve(model)
    assert (refused.value.status, refused.value.param) == (404, "model")
    assert repr(model) in refused.value.message
    assert "tiny, alias, auto" in refused.value.message


def test_two_pins_that_differ_are_refused() -> None:
    """The model's name and the variant must not contradict each other."""
    with pytest.raises(HintConflict) as refused:
        _resolve("tiny:v", "w")
    assert (refused.value.status, refused.value.param) == (400, "variant")
    assert "'tiny:v'" in refused.value.message
    assert "'w'" in refused.value.message
