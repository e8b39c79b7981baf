"""Where numbers come from: machine, versions, commit and command, on each page and figure."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from serve_app.engines.base import Device
from serve_app.engines.measure import hardware_name

TOOLS = (
    "torch",
    "transformers",
    "tokenizers",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "ai-edge-litert",
    "litert-torch",
    "numpy",
)
NO_COMMIT = "not a checkout"
COMMIT_VARIABLE = "SOURCE_COMMIT"  # tells it where the source is a copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """All that is needed to measure the same again."""

    machine: str
    tools: dict[str, str]  # package name -> version
    commit: str
    command: str
    made_at: str  # ISO 8601, UTC

    @property
    def lines(self) -> tuple[str, str, str]:
        """For people: machine, versions, and how to repeat it."""
        python = ".".join(map(str, sys.version_info[:3]))
        packages = ", ".join(f"{name} {number}" for name, number in self.tools.items())
        return (
            self.machine,
            f"Python {python}, {packages}",
            f"commit {self.commit}, {self.made_at}, {self.command}",
        )


def provenance(device: Device = "cpu", *, packages: Sequence[str] = TOOLS) -> Provenance:
    """Of this process, now."""
    return Provenance(
        machine=hardware_name(device),
        tools=tool_versions(packages),
        commit=commit(Path(__file__).parent),
        command=command_line(),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def tool_versions(packages: Sequence[str] = TOOLS) -> dict[str, str]:
    """Versions of those packages that are here; by default those that decide vectors and speed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def command_line() -> str:
    """How this program was started, in the form that its readers can repeat."""
    program = Path(sys.argv[0])
    package = program.parent.name if program.name == "__main__.py" else "converters"
    return shlex.join(["python", "-m", package, *sys.argv[1:]])


def commit(folder: Path) -> str:
    """The commit that a source folder is at, and whether tracked files differ from it.

    Of a copy whose history is not there or not its own, as in a container or on a lent machine: what
    SOURCE_COMMIT says.
    """
    if told := os.environ.get(COMMIT_VARIABLE):
        return told
    git = shutil.which("git")
    head = git and _output(git, "-C", str(folder), "rev-parse", "--short=12", "HEAD")
    if not git or not head:
        return NO_COMMIT
    changed = _output(git, "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return f"{head} with local changes" if changed else head


def _output(*command: str) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() if done.returncode == 0 else None
