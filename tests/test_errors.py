"""The error tree is what its docstring draws."""

import re

import pytest

from serve_app import errors

DRAWN = re.findall(r"([A-Z]\w+) +(\d{3}) +(\w+)", errors.__doc__ or "")


def test_every_error_is_drawn() -> None:
    """No class is missing from the tree."""
    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    names = {c.__name__ for c in classes if issubclass(c, errors.ServeAppError)}
    assert names <= set(re.findall(r"\w+", errors.__doc__ or ""))
    assert len(DRAWN) == 16


@pytest.mark.parametrize(("name", "status", "code"), DRAWN)
def test_status_and_code_are_as_drawn(name: str, status: str, code: str) -> None:
    """The table a reader trusts gives each class's HTTP status and code."""
    drawn = getattr(errors, name)
    assert (int(drawn.status), drawn.code) == (int(status), code)


def test_a_long_value_is_cut_and_its_length_told() -> None:
    """A message stays readable whatever was sent."""
    shown = errors.shown("x" * 10_000)
    assert shown.startswith("'xxxx")
    assert shown.endswith("… (10002 characters)")
    assert len(shown) < 120
    assert errors.shown("short") == "'short'"
