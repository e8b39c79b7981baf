"""Profiles measured again on this machine: an artifact keeps its files and its promises, not its times.

For artifacts that were copied here, and for those measured in a noisy hour. What can be measured here
is measured side by side, as in a build; the manifest's commit and command stay those of the build.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from converters import latency
from converters.workplace import Step, workplace
from serve_app.engines.base import Device, Engine, open_engine
from serve_app.engines.measure import Setup, hardware_name
from serve_app.errors import ConversionError, SetupError
from serve_app.manifest import (
    MANIFEST_NAME,
    Manifest,
    Profile,
    read_manifest,
    verify,
    write_manifest,
)
from serve_app.registry import wants_gpu

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An artifact that runs here."""

    manifest: Manifest
    engine: Engine
    setup: Setup


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
    return [folder for folder in artifacts(out) if not _is_of_here(read_manifest(folder).profile)]


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
        opened: dict[Path, Opened] = {}
        for folder in choose(out):
            try:
                with step(f"{folder.name}: open"):
                    opened[folder] = _open(folder)
            except SetupError as error:
                say(f"{folder.name}: not measured again ({error})")
        for folder, profile in _profiles(opened, step=step).items():
            write_manifest(folder, replace(opened[folder].manifest, profile=profile))
    return bool(opened)


def _is_of_here(profile: Profile) -> bool:
    """A machine without a GPU cannot tell whose a GPU's profile is, and leaves it alone."""
    if profile.device == "cuda" and not latency.gpu_count():
        return True
    return profile.hardware == hardware_name(profile.device)


def _open(folder: Path) -> Opened:
    manifest = verify(folder)
    threads, device = manifest.profile.threads, _device(manifest)
    return Opened(
        manifest=manifest,
        setup=latency.setup(folder, manifest, threads=threads, device=device),
        engine=open_engine(folder, manifest, threads=threads, device=device),
    )


def _device(manifest: Manifest) -> Device:
    """Where it would run here, and never a CPU's times in place of a GPU's."""
    if wants_gpu(manifest) and latency.gpu_count():
        return "cuda"
    if manifest.profile.device == "cuda":
        raise ConversionError("its profile is a GPU's, and this machine has none")
    return "cpu"


def _profiles(opened: Mapping[Path, Opened], *, step: Step) -> dict[Path, Profile]:
    found: dict[Path, Profile] = {}
    for device in sorted({o.setup.device for o in opened.values()}):
        here = {str(f): o for f, o in opened.items() if o.setup.device == device}
        names = ", ".join(Path(folder).name for folder in here)
        with step(f"profile {names} again on {hardware_name(device)}"):
            profiles = latency.profile_all(
                {folder: o.engine for folder, o in here.items()},
                {folder: o.setup for folder, o in here.items()},
                max_tokens=min(o.manifest.checkpoint.max_tokens for o in here.values()),
            )
        found |= {Path(folder): profile for folder, profile in profiles.items()}
    return found
