"""Profiles measured again on this machine: an artifact keeps its files and its promises, not its times.

For artifacts that were copied here, and for those measured in a noisy hour. What can be measured here
is measured side by side, as in a build; the manifest's commit and command stay those of the build.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from converters import latency
from converters.side_by_side import Say, profile_side_by_side
from converters.workplace import Step, workplace
from serve_app.engines.cpu import this_cpu
from serve_app.engines.measure import hardware_name
from serve_app.manifest import MANIFEST_NAME, Manifest, read_manifest
from serve_app.registry import wants_gpu


def remeasure_foreign(out: Path, *, prepare: Callable[[], None], step: Step, say: Say) -> bool:
    """Measure again what was measured on other hardware; whether there was anything to measure.

    Args:
        out: the artifacts folder, which need not exist.
        prepare: runs before the first engine is opened, and not when there is nothing to do.
        step: wraps each step, to show progress.
        say: tells what is done, and what cannot be.
    """
    found = ", ".join(folder.name for folder in foreign(out))
    if not found:
        return False
    if not os.access(out, os.W_OK):
        say(f"{found}: measured on other hardware; {out} is read-only, so replicas will measure")
        return False
    say(f"{found}: measured on other hardware; measuring again on this")
    prepare()
    return remeasure(out, foreign, step=step, say=say)


def foreign(out: Path) -> list[Path]:
    """The artifacts in a folder whose profile is of other hardware than this machine's.

    Raises:
        ArtifactError: a manifest is broken.
    """
    return [folder for folder in artifacts(out) if not _is_of_here(read_manifest(folder))]


def artifacts(out: Path) -> list[Path]:
    """The finished artifacts in a folder."""
    return [file.parent for file in sorted(out.glob(f"*/{MANIFEST_NAME}"))]


def remeasure(out: Path, choose: Callable[[Path], list[Path]], *, step: Step, say: Say) -> bool:
    """Measure artifacts again and rewrite their manifests; whether there was anything to measure.

    Args:
        out: the artifacts folder.
        choose: which of it; asked when no other build is at work there.
        step: wraps each step, to show progress.
        say: tells of an artifact that cannot be measured here, whose profile stays.

    Raises:
        ConversionError: `out` cannot be written.
    """
    with workplace(out, step):
        return bool(profile_side_by_side(choose(out), step=step, say=say, afresh=True))


def _is_of_here(manifest: Manifest) -> bool:
    """A machine leaves alone what it cannot run: what needs a GPU, or instructions that its CPU lacks."""
    profile = manifest.profile
    if profile.device == "cpu" and this_cpu().lacks(manifest.runtime, manifest.precision):
        return True
    if (profile.device == "cuda" or wants_gpu(manifest)) and not latency.gpu_count():
        return True
    return profile.hardware == hardware_name(profile.device)
