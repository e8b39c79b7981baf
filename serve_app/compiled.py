"""The routing brain in C: `python -m serve_app compile` has mypyc compile `policy/` in place.

A decision takes a quarter of the time then. Python takes what is compiled rather than the sources beside it, and these
may have changed since: whatever decides calls `require_current` when it starts.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from serve_app.errors import SetupError

POLICY = Path(__file__).with_name("policy")
# Their objects are pickled by Ray on their way between processes, which compiled frozen ones cannot be.
LEFT = {"__init__.py", "replica_state.py", "scaling.py"}
OF_SOURCES = "compiled.sha256"  # beside what was compiled from them
# Its own process: mypy reads pyproject.toml where it runs, and leaves by sys.exit.
BUILD = """
import sys
from mypyc.build import mypycify
from setuptools import setup

sources, built = sys.argv[2:], sys.argv[1]
modules = mypycify(sources, group_name="serve_app.policy.compiled", target_dir=built + "/c")
places = ["--build-lib", built + "/lib", "--build-temp", built + "/o"]
setup(name="policy", packages=[], ext_modules=modules, script_args=["--quiet", "build_ext", *places])
"""


def is_compiled(policy: Path = POLICY) -> bool:
    """Whether this Python runs what was compiled."""
    names = (source.stem + suffix for source in _sources(policy) for suffix in EXTENSION_SUFFIXES)
    return any((policy / name).exists() for name in names)


def require_current(policy: Path = POLICY) -> None:
    """See to it that what runs is what is written.

    Raises:
        SetupError: a source was changed after it was compiled, or compiling was interrupted.
    """
    told = policy / OF_SOURCES
    if is_compiled(policy) and not (told.exists() and told.read_text() == _digest(policy)):
        raise SetupError(
            f"{policy} was changed after it was compiled, or not all of it was, and would run as it was: "
            "`python -m serve_app compile` compiles it anew, `python -m serve_app interpret` forgets what was compiled"
        )


def compile_policy(policy: Path = POLICY) -> None:
    """Compile the modules of the policy, and put them beside their sources.

    Raises:
        SetupError: mypyc or a C compiler is not there, or fails; with its last lines.
    """
    interpret_policy(policy)
    sources = [str(source) for source in _sources(policy) if source.name not in LEFT]
    with tempfile.TemporaryDirectory(prefix="compiled-") as built:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", BUILD, built, *sources],
            cwd=policy.parents[1],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
            raise SetupError(
                f"the policy was not compiled; it takes mypy, setuptools and a C compiler:\n{last}"
            )
        for module in Path(built, "lib", "serve_app", "policy").iterdir():
            shutil.copy2(module, policy)
    (policy / OF_SOURCES).write_text(_digest(policy))


def interpret_policy(policy: Path = POLICY) -> None:
    """Remove what was compiled."""
    (policy / OF_SOURCES).unlink(missing_ok=True)
    for suffix in ("*.so", "*.pyd"):
        for module in policy.glob(suffix):
            module.unlink()


def _sources(policy: Path) -> list[Path]:
    return sorted(policy.glob("*.py"))


def _digest(policy: Path) -> str:
    found = hashlib.sha256()
    for source in _sources(policy):
        found.update(f"{source.name} {hashlib.sha256(source.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()
