"""Opening an engine to serve: with its manifest's profile where that fits, else with one of its own.

A profile says what a batch takes on one kind of hardware. On any other, or with other threads, the
forecasts made from it would be wrong by the ratio of the two machines, so the engine is measured
before its first request. Replicas that start side by side measure side by side: on a machine with
fewer cores than replicas the times are those of a busy machine, and the forecasts err to the slow side.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from serve_app.engines.base import Device, Engine, open_engine
from serve_app.engines.measure import Setup, hardware_name, quick_profile, resident_bytes
from serve_app.manifest import Manifest, Profile

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """A ready engine, and what it costs here where its manifest does not know that."""

    engine: Engine
    measured: Profile | None  # None: the manifest's profile fits


def open_profiled(
    folder: Path,
    manifest: Manifest,
    *,
    threads: int,
    device: Device,
    now_s: Callable[[], float] = time.perf_counter,
) -> Opened:
    """Open an engine; measure it, for at most `QUICK_BUDGET_S`, where no profile fits.

    Args:
        folder: the artifact, already verified.
        manifest: its promises.
        threads: compute threads on the CPU.
        device: where it runs.
        now_s: the clock.

    Raises:
        ArtifactError: as `open_engine`.
    """
    started_s = now_s()
    engine = open_engine(folder, manifest, threads=threads, device=device)
    setup = Setup(
        hardware=hardware_name(device),
        device=device,
        threads=threads,
        load_ms=(now_s() - started_s) * 1000,
        resident_bytes=resident_bytes(),
    )
    if setup.fits(manifest.profile):
        return Opened(engine, None)
    started_s = now_s()
    profile = quick_profile(engine, setup, max_tokens=manifest.checkpoint.max_tokens, now_s=now_s)
    log.warning(
        "%s: its profile is of %s, this replica runs on %s; measured its own in %.1f s",
        manifest.variant,
        _told(manifest.profile),
        _told(profile),
        now_s() - started_s,
    )
    return Opened(engine, replace(profile, resident_bytes=resident_bytes()))


def _told(profile: Profile) -> str:
    return f"{profile.hardware!r} ({profile.device}, threads: {profile.threads})"
