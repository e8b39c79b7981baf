"""Profiles of artifacts that take turns, so that a noisy minute touches each alike and ratios hold.

A profile measured alone is good enough to serve with; which of two variants is cheaper, only one run
of both can say. So the last step of each build measures all artifacts that will lie in its folder,
those of earlier builds too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from converters import latency
from converters.workplace import Step
from serve_app.engines.base import Device, Engine, open_engine
from serve_app.engines.measure import Setup, hardware_name
from serve_app.errors import ArtifactError
from serve_app.manifest import Manifest, read_manifest, write_manifest


def profile_side_by_side(
    folders: Sequence[Path], *, threads: int, step: Step
) -> dict[str, Manifest]:
    """Measure artifacts in one interleaved run a device, and write the profiles into their manifests.

    Args:
        folders: finished artifacts of one checkpoint. What does not open on this machine keeps its
            profile.
        threads: of a replica.
        step: wraps each step, to show progress.

    Returns:
        The new manifests, by variant.
    """
    written: dict[str, Manifest] = {}
    manifests = {folder: read_manifest(folder) for folder in folders}
    for device in sorted({m.profile.device for m in manifests.values()}):
        here = {f: m for f, m in manifests.items() if m.profile.device == device}
        engines = _open(here, threads=threads, device=device)
        if not engines:
            continue
        with step(f"profile on {hardware_name(device)}"):
            profiles = latency.profile_all(
                {here[f].variant: engine for f, engine in engines.items()},
                {here[f].variant: _setup(f, here[f], threads=threads) for f in engines},
                max_tokens=next(iter(here.values())).checkpoint.max_tokens,
            )
        for folder in engines:
            variant = here[folder].variant
            written[variant] = replace(here[folder], profile=profiles[variant])
            write_manifest(folder, written[variant])
    return written


def _open(
    manifests: Mapping[Path, Manifest], *, threads: int, device: Device
) -> dict[Path, Engine]:
    engines: dict[Path, Engine] = {}
    for folder, manifest in manifests.items():
        with suppress(ArtifactError):  # its runtime or its GPU is not here
            engines[folder] = open_engine(folder, manifest, threads=threads, device=device)
    return engines


def _setup(folder: Path, manifest: Manifest, *, threads: int) -> Setup:
    """Load time and memory as the manifest has them, if it was opened the same way."""
    known = manifest.profile
    setup = Setup(
        hardware=hardware_name(known.device),
        device=known.device,
        threads=threads,
        load_ms=known.load_ms,
        resident_bytes=known.resident_bytes,
    )
    if setup.fits(known):
        return setup
    return latency.setup(folder, manifest, threads=threads, device=known.device)
