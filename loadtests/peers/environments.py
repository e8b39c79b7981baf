"""A virtual environment for each peer, made once and kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtests.errors import LoadTestError

MADE = "made.json"  # in an environment: what was asked of it when it was made
INSTALL_WITHIN_S = 1800.0
TOLD_CHARS = 300

Run = Callable[[Sequence[str], Path], str]  # command, log → its output; raises CannotInstall


class CannotInstall(LoadTestError):
    """Names the peer and why."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A line of an installed package that today's versions of others have broken."""

    file: str  # below site-packages
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What a peer needs."""

    name: str
    packages: tuple[str, ...]
    python: str | None = None  # as "3.12"; None: the one that runs this
    removed: tuple[str, ...] = ()  # after installation: what it brings and cannot bear
    patches: tuple[Patch, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """A ready environment."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    @property
    def python(self) -> str:
        return str(self.bin / "python")

    def versions(self, packages: Sequence[str]) -> dict[str, str]:
        """Installed versions of those packages that are there."""
        code = (
            "import sys, json\n"
            "from importlib.metadata import version, PackageNotFoundError\n"
            "found = {}\n"
            "for name in sys.argv[1:]:\n"
            "    try: found[name] = version(name)\n"
            "    except PackageNotFoundError: pass\n"
            "print(json.dumps(found))"
        )
        done = subprocess.run(  # noqa: S603
            [self.python, "-c", code, *packages], capture_output=True, text=True, check=True
        )
        found: dict[str, str] = json.loads(done.stdout)
        return found


def make(environment: Environment, work: Path, *, run: Run | None = None) -> Made:
    """Make it, or take the one that was made of the same; an interrupted one is gone on with.

    Raises:
        CannotInstall: no such Python, a package that cannot be had, or a patch that does not fit.
    """
    run = run or run_logged
    made = Made((work / environment.name).resolve())
    asked = json.dumps(asdict(environment), indent=1)
    stamp = made.folder / MADE
    if stamp.exists() and stamp.read_text(encoding="utf-8") == asked:
        return made
    log = work / f"{environment.name}.log"
    if not (made.bin / "pip").exists():  # the last thing that venv makes
        python = find_python(environment.python)
        if python is None:
            raise CannotInstall(f"{environment.name}: needs Python {environment.python}, none here")
        work.mkdir(parents=True, exist_ok=True)
        run([python, "-m", "venv", str(made.folder)], log)
    pip = [made.python, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "--quiet", *environment.packages], log)
    if environment.removed:
        run([*pip, "uninstall", "--yes", "--quiet", *environment.removed], log)
    for patch in environment.patches:
        apply(patch, next(made.folder.glob("lib/python3*/site-packages")))
    stamp.write_text(asked, encoding="utf-8")
    return made


def apply(patch: Patch, site_packages: Path) -> None:
    """Replace a patch's text, once; one that is in already is left.

    Raises:
        CannotInstall: the text is not there.
    """
    file = site_packages / patch.file
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if patch.new in text and patch.old not in text.replace(patch.new, ""):
        return
    if patch.old not in text:
        raise CannotInstall(f"{patch.file}: {patch.old!r} is not in it, another version?")
    file.write_text(text.replace(patch.old, patch.new), encoding="utf-8")


def find_python(version: str | None, *, candidates: Iterator[str] | None = None) -> str | None:
    """A Python of that version that runs; None where there is none."""
    if version is None:
        return sys.executable
    for candidate in candidates or _candidates(version):
        try:
            done = subprocess.run(  # noqa: S603
                [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError:
            continue
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    return None


def _candidates(version: str) -> Iterator[str]:
    """On the path, and those of pyenv, whose command on the path may refuse."""
    if found := shutil.which(f"python{version}"):
        yield found
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}")))


def run_logged(command: Sequence[str], log: Path) -> str:
    """Run a command with its output in a log; raises CannotInstall with its last line of error."""
    try:
        done = subprocess.run(  # noqa: S603
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=INSTALL_WITHIN_S,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotInstall(f"{log.stem}: not installed within {error.timeout:.0f} s") from error
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as opened:
        opened.write(done.stdout)
    if done.returncode:
        raise CannotInstall(f"{log.stem}: {why(done.stdout)}")
    return done.stdout


def why(output: str) -> str:
    """The line of an installer's output that tells most."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR", "error"))]
    return (errors or lines or ["it said nothing"])[0 if errors else -1][:TOLD_CHARS]
