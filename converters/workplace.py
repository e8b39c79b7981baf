"""Where a build works: a hidden folder beside the artifacts, one build at a time.

A lock, not side by side: two builds would spoil each other's timings, and the profile is half of what
a build is for. The kernel frees the lock of a dead process, so who holds it may clear away what
others left. A finished variant gets its manifest in the hidden folder and is put in place by a
rename, after the old one was moved aside; a build that died between the two is finished by the next.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from serve_app.errors import ArtifactError, ConversionError
from serve_app.manifest import MANIFEST_NAME, verify

Step = Callable[[str], AbstractContextManager[None]]

LOCK_NAME = ".lock"
SCRATCH_PREFIX = ".building-"
REPLACED = ".replaced"
EXIT_INTERRUPTED = 130  # as shells count: 128 and the signal's number
INTERRUPTED = "interrupted; the artifacts that were there are unchanged"
DISK_FULL = "No space left on device"  # libraries wrap the system's error, and keep its words


@contextmanager
def workplace(out: Path, step: Step) -> Iterator[Path]:
    """A scratch folder inside `out`, made if missing, gone at the end; waits for another build.

    Raises:
        ConversionError: `out` cannot be written, or the disk is full.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _locked(out, step):
            _clear(out)
            scratch = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=out))
            try:
                with _clean_exit_on_ctrl_c(out):
                    yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ConversionError(f"{out}: cannot be written ({error.strerror or error})") from error
    except Exception as error:  # safetensors, ONNX Runtime and exporters have their own for this
        if DISK_FULL in str(error):
            raise ConversionError(f"{out}: cannot be written ({DISK_FULL})") from error
        raise


@contextmanager
def _locked(out: Path, step: Step) -> Iterator[None]:
    with (out / LOCK_NAME).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step(f"waiting for another build into {out}"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _clean_exit_on_ctrl_c(out: Path) -> Iterator[None]:
    """Clear up and leave at once: an exception raised inside PyTorch's tracer crashes the process."""

    def leave(*_: object) -> None:
        _clear(out)
        print(f"\n{INTERRUPTED}", file=sys.stderr, flush=True)
        os._exit(EXIT_INTERRUPTED)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def put(folder: Path, place: Path) -> None:
    """Move a finished artifact into place; the one that was there goes away with the scratch."""
    if place.exists():
        place.rename(folder.with_name(f"{place.name}{REPLACED}"))
    folder.rename(place)


def _clear(out: Path) -> None:
    """Remove what dead builds left, after saving an artifact that was on its way into place."""
    for stale in sorted(out.glob(f"{SCRATCH_PREFIX}*")):
        for manifest in sorted(stale.glob(f"*/{MANIFEST_NAME}")):
            place = out / manifest.parent.name.removesuffix(REPLACED)
            if not place.exists():
                with suppress(ArtifactError):
                    verify(manifest.parent)
                    manifest.parent.rename(place)
        shutil.rmtree(stale, ignore_errors=True)
