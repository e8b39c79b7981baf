"""Profiles of artifacts that take turns, so that a noisy minute touches each alike and ratios hold.

A profile measured alone is good enough to serve with; which of two variants is cheaper, only one run
of both can say. So the last step of each build measures all artifacts that will lie in its folder,
those of earlier builds too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from converters import latency
from converters.workplace import Step
from serve_app.engines.base import Device, Engine, open_engine
from serve_app.engines.measure import Setup, hardware_name
from serve_app.errors import ConversionError, SetupError
from serve_app.manifest import Manifest, verify, write_manifest
from serve_app.registry import may_use_gpu, wants_gpu

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An artifact that runs here."""

    folder: Path
    manifest: Manifest
    engine: Engine
    setup: Setup


def profile_side_by_side(
    folders: Sequence[Path],
    *,
    step: Step,
    say: Say,
    threads: int | None = None,
    afresh: bool = False,
) -> dict[str, Manifest]:
    """Measure artifacts in one interleaved run a device, and write the profiles into their manifests.

    Args:
        folders: finished artifacts of one checkpoint.
        step: wraps each step, to show progress.
        say: tells of an artifact that cannot be measured here, whose profile stays.
        threads: of a replica; None for those that each was measured with.
        afresh: measure load time and memory again too, where they are known.

    Returns:
        The new manifests, by variant.
    """
    opened: list[Opened] = []
    for folder in folders:
        try:
            with step(f"{folder.name}: open"):
                opened.append(_open(folder, threads=threads, afresh=afresh))
        except SetupError as error:
            say(f"{folder.name}: not measured again ({error})")
    written: dict[str, Manifest] = {}
    for device in sorted({o.setup.device for o in opened}):
        here = {o.manifest.variant: o for o in opened if o.setup.device == device}
        with step(f"profile {', '.join(here)} on {hardware_name(device)}"):
            profiles = latency.profile_all(
                {variant: o.engine for variant, o in here.items()},
                {variant: o.setup for variant, o in here.items()},
                max_tokens=min(o.manifest.checkpoint.max_tokens for o in here.values()),
            )
        for variant, o in here.items():
            written[variant] = replace(o.manifest, profile=profiles[variant])
            write_manifest(o.folder, written[variant])
    return written


def _open(folder: Path, *, threads: int | None, afresh: bool) -> Opened:
    manifest = verify(folder)
    threads, device = threads or manifest.profile.threads, _device(manifest)
    known = replace(
        Setup.of(manifest.profile), hardware=hardware_name(device), device=device, threads=threads
    )
    if afresh or not known.fits(manifest.profile):
        known = latency.setup(folder, manifest, threads=threads, device=device)
    engine = open_engine(folder, manifest, threads=threads, device=device)
    return Opened(folder=folder, manifest=manifest, engine=engine, setup=known)


def _device(manifest: Manifest) -> Device:
    """Where it would run here, and never a CPU's times in place of a GPU's."""
    if may_use_gpu(manifest) and latency.gpu_runs(manifest.runtime):
        return "cuda"
    if manifest.profile.device == "cuda":
        raise ConversionError("its profile is a GPU's, and this machine has none")
    if wants_gpu(manifest):  # on a CPU it took more of a build than all others together
        raise ConversionError("it needs a GPU, and this machine has none")
    return "cpu"
