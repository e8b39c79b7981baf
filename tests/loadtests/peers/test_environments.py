"""Environments of peers: made once, gone on with, and patched; nothing is installed here."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from loadtests.peers.environments import (
    CannotInstall,
    Environment,
    Made,
    Patch,
    apply,
    find_python,
    make,
    run_logged,
    why,
)

PEER = Environment(name="peer", packages=("a==1", "b"), removed=("c",))


class Shell:
    """Writes commands down, and makes what `venv` would."""

    def __init__(self, *, fails: str = "") -> None:
        self.commands: list[str] = []
        self._fails = fails

    def __call__(self, command: Sequence[str], log: Path) -> str:
        del log
        self.commands.append(" ".join(command))
        if self._fails and self._fails in command:
            raise CannotInstall("no wheel")
        if "venv" in command:
            folder = Path(command[-1])
            (folder / "bin").mkdir(parents=True, exist_ok=True)
            for name in ("python", "pip"):
                (folder / "bin" / name).touch()
            (folder / "lib" / "python3.11" / "site-packages").mkdir(parents=True, exist_ok=True)
        return ""


def test_an_environment_is_made_once(tmp_path: Path) -> None:
    """Made, installed into and cleared; the second time nothing runs, and another list installs anew."""
    shell = Shell()
    made = make(PEER, tmp_path, run=shell)
    assert made == Made(tmp_path / "peer")
    pip = f"{made.python} -m pip --disable-pip-version-check"
    assert shell.commands[1:] == [
        f"{pip} install --quiet a==1 b",
        f"{pip} uninstall --yes --quiet c",
    ]
    make(PEER, tmp_path, run=shell)
    assert len(shell.commands) == 3
    make(Environment(name="peer", packages=("a==2",)), tmp_path, run=shell)
    assert shell.commands[3:] == [f"{pip} install --quiet a==2"]


def test_an_installation_that_failed_is_tried_again(tmp_path: Path) -> None:
    """The reason is told, and the folder is not taken for whole."""
    with pytest.raises(CannotInstall, match="no wheel"):
        make(PEER, tmp_path, run=Shell(fails="install"))
    shell = Shell()
    make(PEER, tmp_path, run=shell)
    assert "install" in shell.commands[0]
    assert len(shell.commands) == 2


def test_an_environment_that_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    """Killed before venv had put pip there, its Python alone is of no use."""
    (tmp_path / "peer" / "bin").mkdir(parents=True)
    (tmp_path / "peer" / "bin" / "python").touch()
    shell = Shell()
    make(PEER, tmp_path, run=shell)
    assert "venv" in shell.commands[0]
    assert len(shell.commands) == 3


def test_a_python_that_is_not_here_is_the_reason(tmp_path: Path) -> None:
    """Named, before anything is made."""
    old = Environment(name="old", packages=(), python="2.6")
    with pytest.raises(CannotInstall, match=r"old: needs Python 2\.6"):
        make(old, tmp_path, run=Shell())
    assert not (tmp_path / "old").exists()


def test_a_python_must_run_and_be_of_the_version() -> None:
    """A command of the right name may refuse or be another."""
    here = "{}.{}".format(*sys.version_info[:2])
    candidates = ["/nowhere/python", "/bin/false", sys.executable]
    assert find_python(here, candidates=iter(candidates)) == sys.executable
    assert find_python("2.6", candidates=iter(candidates)) is None
    assert find_python(None) == sys.executable


def test_a_patch_is_put_in_once(tmp_path: Path) -> None:
    """Twice is as once, even where the new text holds the old; other text is refused by name."""
    file = tmp_path / "x.py"
    file.write_text("from a import b\n")
    patch = Patch("x.py", "import b", "import b as import_b  # import b")
    apply(patch, tmp_path)
    once = file.read_text()
    apply(patch, tmp_path)
    assert file.read_text() == once == "from a import b as import_b  # import b\n"
    for name in ("x.py", "y.py"):
        with pytest.raises(CannotInstall, match=rf"{name}.*another version"):
            apply(Patch(name, "nothing", "more"), tmp_path)


def test_output_is_logged_and_a_failure_told(tmp_path: Path) -> None:
    """The installer's own error, not its last line."""
    log = tmp_path / "peer.log"
    run_logged([sys.executable, "-c", "print('fine')"], log)
    with pytest.raises(CannotInstall, match=r"^peer: ERROR: no such package$"):
        run_logged(
            [sys.executable, "-c", "print('ERROR: no such package\\nhint'); raise SystemExit(1)"],
            log,
        )
    assert log.read_text().startswith("fine\n")
    assert why("") == "it said nothing"
    assert why("a\nb\n") == "b"
