"""Artifacts on disk: reading a manifest, holding the files to it, writing it last and in one step.

The manifest is written last, so a folder without one is an interrupted build, never a variant. What a
manifest says is in `promises.py`; its names are had from here.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.errors import ArtifactError
from serve_app.promises import (
    FORMAT_VERSION,
    TOKENIZER_NAME,
    Checkpoint,
    Drift,
    Fidelity,
    File,
    GridCell,
    HeadStep,
    Manifest,
    Overlap,
    Pooling,
    Profile,
    Prompts,
    Recovered,
    Runtime,
    TaskScore,
    Tokenizer,
    Variant,
)

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "TOKENIZER_NAME",
    "Checkpoint",
    "Drift",
    "Fidelity",
    "File",
    "GridCell",
    "HeadStep",
    "Manifest",
    "Overlap",
    "Pooling",
    "Profile",
    "Prompts",
    "Recovered",
    "Runtime",
    "TaskScore",
    "Tokenizer",
    "Variant",
    "describe_files",
    "read_manifest",
    "sha256_of",
    "verify",
    "write_manifest",
]

MANIFEST_NAME = "manifest.json"


@cache
def _adapter() -> TypeAdapter[Manifest]:
    from pydantic import TypeAdapter

    return TypeAdapter(Manifest)


def sha256_of(file: Path) -> str:
    """Hex digest of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of one artifact; the files themselves are checked by `verify`.

    Raises:
        ArtifactError: the manifest is missing, broken, or of another format version.
    """
    from pydantic import ValidationError

    path = folder / MANIFEST_NAME
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON ({error}); rebuild the variant") from error
    found = content.get("format_version") if isinstance(content, dict) else None
    if found is not None and found != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format_version {found}, this version reads {FORMAT_VERSION}; "
            "rebuild the variant"
        )
    try:
        return _adapter().validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ArtifactError(f"{path}: {where}: {first['msg']}; rebuild the variant") from error


def verify(folder: Path) -> Manifest:
    """Read an artifact's manifest and check that every file still has the promised bytes.

    Raises:
        ArtifactError: names the variant and the file that is missing or changed.
    """
    manifest = read_manifest(folder)
    for name, promised in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise ArtifactError(f"{folder}: {manifest.variant} lacks its file {name}; rebuild it")
        if file.stat().st_size != promised.size_bytes or sha256_of(file) != promised.sha256:
            raise ArtifactError(
                f"{folder}: {name} of {manifest.variant} is not the file its manifest promises "
                "(checksum differs); rebuild it"
            )
    return manifest


def describe_files(folder: Path) -> dict[str, File]:
    """The files of an artifact folder, as its manifest lists them; hidden folders are caches."""
    return {
        file.relative_to(folder).as_posix(): File(
            sha256=sha256_of(file), size_bytes=file.stat().st_size
        )
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST_NAME and not _is_cached(file, folder)
    }


def _is_cached(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts[:-1])


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` in one step: it is there whole, or not at all."""
    temporary = folder / f".{MANIFEST_NAME}.{os.getpid()}"
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(asdict(manifest), stream, indent=2)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(folder / MANIFEST_NAME)
    finally:
        temporary.unlink(missing_ok=True)
