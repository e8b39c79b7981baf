"""Opening an engine to serve: with its manifest's profile where that fits, else with one of its own.

A profile says what a batch takes on one kind of hardware. On any other, or with other threads, the
forecasts made from it would be wrong by the ratio of the two machines, so the engine is measured
before its first request. Replicas that start together take turns: three that measured side by side on
two cores found themselves three times as slow as they are, and INT8 dearer than BF16.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from serve_app.engines import memory
from serve_app.engines.base import Device, Engine, open_engine
from serve_app.engines.measure import Setup, hardware_name, quick_profile, resident_bytes
from serve_app.manifest import Manifest, Profile

log = logging.getLogger(__name__)

LOCKS: dict[Device, Path] = {"cpu": Path(__file__), "cuda": Path(memory.__file__)}


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
    streams: int = 1,
    now_s: Callable[[], float] = time.perf_counter,
) -> Opened:
    """Open an engine; where no profile fits, measure it, for `QUICK_BUDGET_S` from its turn.

    Args:
        folder: the artifact, already verified.
        manifest: its promises.
        threads: compute threads on the CPU, of each batch.
        device: where it runs.
        streams: batches that it will run side by side; it is measured with one at a time.
        now_s: the clock.

    Raises:
        ArtifactError: as `open_engine`.
    """
    started_s = now_s()
    engine = open_engine(folder, manifest, threads=threads, device=device, streams=streams)
    setup = Setup(
        hardware=hardware_name(device),
        device=device,
        threads=threads,
        load_ms=(now_s() - started_s) * 1000,
        resident_bytes=resident_bytes(),
    )
    if setup.fits(manifest.profile):
        return Opened(engine, None)
    with _turn(device):
        started_s = now_s()
        profile = quick_profile(
            engine, setup, max_tokens=manifest.checkpoint.max_tokens, now_s=now_s
        )
    log.warning(
        "%s: its profile is of %s, this replica runs on %s; measured its own in %.1f s",
        manifest.variant,
        _told(manifest.profile),
        _told(profile),
        now_s() - started_s,
    )
    return Opened(engine, replace(profile, resident_bytes=resident_bytes()))


@contextmanager
def _turn(device: Device) -> Iterator[None]:
    """One replica of this machine at a time on each kind of device; a GPU does not wait for the cores.

    The locks are on files which all have and none writes; the kernel frees that of a dead process.
    """
    with LOCKS[device].open("rb") as lock:
        with suppress(OSError):  # a file system without locks: better measured in company
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _told(profile: Profile) -> str:
    return f"{profile.hardware!r} ({profile.device}, threads: {profile.threads})"
