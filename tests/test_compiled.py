"""The routing brain compiled: it never decides as its sources once did."""

from pathlib import Path

import pytest

from serve_app import compiled
from serve_app.compiled import OF_SOURCES, compile_policy, interpret_policy, is_compiled
from serve_app.errors import SetupError
from tests.sources import copy_sources


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """The sources, in a tree of their own."""
    return copy_sources(tmp_path) / "serve_app" / "policy"


def test_sources_changed_since_are_refused(policy: Path) -> None:
    """By a message that says what to do; what is not compiled, or not changed, is fine."""
    compiled.require_current(policy)
    (policy / "turns.so").touch()
    with pytest.raises(SetupError, match="not all of it"):  # whoever compiled was interrupted
        compiled.require_current(policy)
    (policy / OF_SOURCES).write_text(compiled._digest(policy))
    compiled.require_current(policy)
    assert is_compiled(policy)
    (policy / "turns.py").write_text("AGES = 1")
    with pytest.raises(SetupError, match="python -m serve_app compile"):
        compiled.require_current(policy)
    interpret_policy(policy)
    compiled.require_current(policy)
    assert not is_compiled(policy)
    assert not list(policy.glob("*.so"))


def test_a_compiler_that_fails_is_told(policy: Path) -> None:
    """Its last lines are in the message, and nothing half compiled is left to run."""
    (policy / "turns.py").write_text("def broken(")
    with pytest.raises(SetupError, match="takes mypy, setuptools and a C compiler") as caught:
        compile_policy(policy)
    assert "turns.py" in str(caught.value)
    assert not is_compiled(policy)
