"""What a ladder holds and leaves out, by name, and manifests changed by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from serve_app.manifest import read_manifest, write_manifest
from serve_app.registry import Ladder


def names_of(ladder: Ladder) -> list[str]:
    return [rung.manifest.variant for rung in ladder.rungs]


def reasons_of(ladder: Ladder) -> dict[str, str]:
    return {off.variant: off.reason for off in ladder.off}


def change(folder: Path, **changes: Any) -> None:
    """Rewrite a manifest; `profile` and `fidelity` take their own changes."""
    manifest = read_manifest(folder)
    for part in ("profile", "fidelity"):
        if part in changes:
            changes[part] = replace(getattr(manifest, part), **changes[part])
    write_manifest(folder, replace(manifest, **changes))
