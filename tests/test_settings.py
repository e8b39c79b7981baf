"""Settings by name, from flags, YAML or builder arguments."""

from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import SettingsError
from serve_app.policy.hint import Hint, Quality
from serve_app.settings import Settings, parse_settings


def test_the_defaults_are_the_documented_ones() -> None:
    """Nothing said: the measured ladder, `balanced` within a second, OpenAI's limit of texts."""
    settings = parse_settings({})
    assert settings == Settings()
    assert settings.default_hint() == Hint(budget_ms=1000.0, quality=Quality(floor=0.99))
    assert (settings.artifacts, settings.variants) == (Path("artifacts"), ())
    assert (settings.max_texts, settings.max_body_bytes) == (2048, 8_388_608)
    assert (settings.threads, settings.routers, settings.max_replicas) == (1, 1, None)
    assert settings.streams is None
    assert settings.max_wait_ms == 30_000
    assert (settings.reserve_ms, settings.cores) == (2.0, None)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("threads", "4", 4),
        ("variants", "a,b", ("a", "b")),
        ("variants", "a", ("a",)),
        ("aliases", "text-embedding-3-small,", ("text-embedding-3-small",)),
        ("default_latency_ms", "12.5", 12.5),
        ("max_replicas", "3", 3),
        ("streams", "2", 2),
        ("artifacts", "/a/b", Path("/a/b")),
    ],
)
def test_text_from_a_command_line_becomes_values(name: str, text: str, expected: object) -> None:
    """Flags and `serve run name=value` carry text; lists are separated by commas."""
    assert getattr(parse_settings({name: text}), name) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", 1),
        ("threads", 256),
        ("streams", 1),
        ("streams", 64),
        ("routers", 1),
        ("routers", 64),
        ("max_replicas", 1),
        ("max_texts", 1),
        ("max_body_bytes", 1024),
        ("max_wait_ms", 0.001),
        ("reserve_ms", 0),
        ("cores", 0.5),
        ("default_latency_ms", 0.001),
    ],
)
def test_the_limits_themselves_are_allowed(name: str, value: float) -> None:
    """The ends of each documented range."""
    assert getattr(parse_settings({name: value}), name) == value


def test_lists_from_yaml_pass() -> None:
    """YAML has lists of its own."""
    assert parse_settings({"variants": ["a", "b"]}).variants == ("a", "b")


@pytest.mark.parametrize(
    ("quality", "expected"),
    [
        ("best", Quality(best=True)),
        ("fast", Quality(floor=0.0)),
        ("0.95", Quality(floor=0.95)),
        pytest.param(0.95, Quality(floor=0.95)),
    ],
)
def test_the_default_quality_is_any_that_a_request_may_have(
    quality: object, expected: Quality
) -> None:
    """A name or a floor, from a flag's text or YAML's number."""
    assert parse_settings({"default_quality": quality}).default_hint().quality == expected


def test_an_unknown_setting_is_refused_with_the_known_ones() -> None:
    """A typing error is named, and all settings that exist are listed."""
    with pytest.raises(SettingsError) as refused:
        parse_settings({"treads": 2})
    assert "unknown setting 'treads'" in refused.value.message
    assert all(name in refused.value.message for name in Settings.model_fields)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("threads", 0, "0"),
        ("threads", "many", "'many'"),
        ("threads", 1.5, "1.5"),
        ("threads", 257, "257"),
        ("streams", 0, "0"),
        ("streams", 65, "65"),
        ("streams", "all", "'all'"),
        ("default_latency_ms", 0, "0"),
        ("default_latency_ms", "nan", "'nan'"),
        ("cluster_cpus", "inf", "'inf'"),
        ("cores", "inf", "'inf'"),
        ("default_quality", "great", "'great'"),
        ("default_quality", "1.5", "1.5"),
        ("max_wait_ms", -1, "-1"),
        ("reserve_ms", -0.1, "-0.1"),
        ("cores", 0, "0"),
        ("max_texts", 0, "0"),
        ("max_body_bytes", 10, "10"),
        ("max_replicas", 0, "0"),
        ("routers", 65, "65"),
        ("variants", 5, "5"),
    ],
)
def test_an_impossible_value_is_refused_with_its_name(name: str, value: Any, shown: str) -> None:
    """The message is for a person: the setting's name, what it must be, and what it got."""
    with pytest.raises(SettingsError) as refused:
        parse_settings({name: value})
    assert refused.value.message.startswith(f"setting {name}")
    assert refused.value.message.endswith(f"got {shown}")


def test_settings_do_not_change() -> None:
    """Replicas and routers share them; nobody may write."""
    with pytest.raises(ValueError, match="frozen"):
        parse_settings({}).threads = 2


def test_every_setting_is_described() -> None:
    """The descriptions are the help of the command line."""
    assert all(field.description for field in Settings.model_fields.values())
