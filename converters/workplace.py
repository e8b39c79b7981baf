"""Where a build works: a hidden folder beside the artifacts, one build at a time.

A lock, not side by side: two builds would spoil each other's timings, and the profile is half of what
a build is for. The kernel frees the lock of a dead process, so who holds it may clear away what
others left. A finished variant has its manifest in the hidden folder and is put in place by a rename,
after the old one was moved aside.

**What a build leaves that was interrupted or killed.** Artifacts in place stay as they were. Variants
that it had finished are put where nothing is, by the process itself if it is asked to end, else by
the next build; the rest goes away, and `build --missing` makes it. Saved profiles were measured alone,
so a mark (`UNCOMPARED`) has the next build measure all artifacts side by side.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from serve_app.errors import ArtifactError, ConversionError
from serve_app.manifest import (
    MANIFEST_NAME,
    Checkpoint,
    Manifest,
    Tokenizer,
    read_manifest,
    verify,
)

Step = Callable[[str], AbstractContextManager[None]]

LOCK_NAME = ".lock"
SCRATCH_PREFIX = ".building-"
REPLACED = ".replaced"
UNCOMPARED = ".uncompared"
SIGNALLED = 128  # as shells count: this and the signal's number
EXIT_INTERRUPTED = SIGNALLED + signal.SIGINT
INTERRUPTED = (
    "interrupted; the artifacts that were there are unchanged; "
    "`python -m converters build --missing` goes on"
)
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
                with _clean_exit_when_asked(out):
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
def _clean_exit_when_asked(out: Path) -> Iterator[None]:
    """Clear up and leave at once: an exception raised inside PyTorch's tracer crashes the process."""

    def leave(number: int, _: object) -> None:
        _clear(out)
        print(f"\n{INTERRUPTED}", file=sys.stderr, flush=True)
        os._exit(SIGNALLED + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def artifacts_of(checkpoint: Checkpoint, tokenizer: Tokenizer, *, out: Path) -> list[Path]:
    """The artifacts in place that are of this very checkpoint, by their manifests."""
    return [
        folder
        for folder, manifest in _in_place(out)
        if (manifest.checkpoint, manifest.tokenizer) == (checkpoint, tokenizer)
    ]


def models_in(out: Path) -> set[str]:
    """The names of the models whose artifacts are in place."""
    return {manifest.checkpoint.name for _, manifest in _in_place(out)}


def is_complete(out: Path, variants: Collection[str]) -> bool:
    """Whether nothing is left to do for these variants, as far as the folder itself tells."""
    there = {folder.name for folder, _ in _in_place(out)}
    return there.issuperset(variants) and not uncompared(out) and not _stale(out)


def uncompared(out: Path) -> bool:
    """Whether artifacts in place were saved before they were measured side by side."""
    return (out / UNCOMPARED).exists()


def mark_compared(out: Path) -> None:
    """All artifacts were measured side by side."""
    (out / UNCOMPARED).unlink(missing_ok=True)


def _in_place(out: Path) -> Iterator[tuple[Path, Manifest]]:
    for file in sorted(out.glob(f"[!.]*/{MANIFEST_NAME}")):
        with suppress(ArtifactError):  # of another version, or damaged: to be built anew
            yield file.parent, read_manifest(file.parent)


def put(folder: Path, place: Path) -> None:
    """Move a finished artifact into place; the one that was there goes away with the scratch."""
    if place.exists():
        place.rename(folder.with_name(f"{place.name}{REPLACED}"))
    folder.rename(place)


def _clear(out: Path) -> None:
    """Remove what dead builds left, after saving what they had finished."""
    for stale in _stale(out):
        for manifest in sorted(stale.glob(f"*/{MANIFEST_NAME}")):
            _save(manifest.parent, out)
        shutil.rmtree(stale, ignore_errors=True)


def _stale(out: Path) -> list[Path]:
    return sorted(out.glob(f"{SCRATCH_PREFIX}*"))


def _save(folder: Path, out: Path) -> None:
    """Put a whole artifact where none is, unless those in place are of another checkpoint."""
    place = out / folder.name.removesuffix(REPLACED)
    if place.exists():
        return
    with suppress(ArtifactError):
        found = verify(folder)
        of_its_kind = artifacts_of(found.checkpoint, found.tokenizer, out=out)
        if len(of_its_kind) == len(list(_in_place(out))):
            (out / UNCOMPARED).touch()
            folder.rename(place)
