"""The build: convert, compare with FP32, profile, and only then put each artifact in its place.

Work goes on in a hidden folder beside the artifacts, where each variant is finished with a manifest
of its own (`finish.py`), so that a build that dies loses none of the finished ones (`workplace.py`).
The last step measures all artifacts side by side, and renames put new ones in the place of old.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converters.finish import Reference, Texts, finish
from converters.recipes import Recipe
from converters.side_by_side import profile_side_by_side
from converters.source import Source
from converters.workplace import (
    DISK_FULL,
    Step,
    artifacts_of,
    mark_compared,
    put,
    uncompared,
    workplace,
)
from serve_app.errors import ConversionError, SetupError
from serve_app.manifest import Manifest

if TYPE_CHECKING:
    from converters.checkpoint import Checkpoint
    from converters.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to build."""

    threads: int = 1  # of the profile: as many as a replica will have
    recover_minutes: float | None = None  # static INT8 learns from its FP32 self; None: not at all
    missing: bool = False  # leave finished artifacts of this checkpoint as they are


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a build made, and why it could not make the rest; both by variant."""

    built: Mapping[str, Manifest]
    failed: Mapping[str, str]


def build(
    checkpoint: Checkpoint,
    recipes: Mapping[str, Recipe],
    *,
    texts: Texts,
    out: Path,
    options: Options,
    progress: Progress,
) -> Outcome:
    """Build variants of a checkpoint into `out`; one that cannot be built does not stop the others.

    Args:
        checkpoint: the source.
        recipes: by the variant's name.
        texts: calibration and probe texts, disjoint.
        out: the artifacts folder; made if missing.
        options: see `Options`.
        progress: is told each step, and of artifacts that cannot be measured here.

    Raises:
        ConversionError: there are too few texts, or `out` cannot be written.
    """
    if not texts.calibration or not texts.probe:
        raise ConversionError("too few texts: one must calibrate and another measure")
    with workplace(out, progress.step) as scratch:
        there = artifacts_of(checkpoint.facts, checkpoint.tokenizer, out=out)
        if options.missing:
            recipes = {v: recipe for v, recipe in recipes.items() if out / v not in there}
        source = Source(
            checkpoint, texts.calibration, scratch, recover_minutes=options.recover_minutes
        )
        outcome = _finish_each(
            source, recipes, texts=texts, threads=options.threads, step=progress.step
        )
        new = [scratch / variant for variant in outcome.built]
        kept = [folder for folder in there if folder.name not in outcome.built]
        if new or uncompared(out):
            compared = profile_side_by_side(
                [*kept, *new], threads=options.threads, step=progress.step, say=progress.line
            )
            outcome = Outcome(
                built={v: compared.get(v, m) for v, m in outcome.built.items()},
                failed=outcome.failed,
            )
            _put_each(new, out)
            mark_compared(out)
    return outcome


def _finish_each(
    source: Source, recipes: Mapping[str, Recipe], *, texts: Texts, threads: int, step: Step
) -> Outcome:
    if not recipes:
        return Outcome(built={}, failed={})
    with step("FP32 reference vectors"):
        reference = Reference.of(source.checkpoint, texts)
    built: dict[str, Manifest] = {}
    failed: dict[str, str] = {}
    for variant, recipe in recipes.items():
        try:
            built[variant] = finish(
                source, variant, recipe, reference=reference, threads=threads, step=step
            )
        except SetupError as error:
            if DISK_FULL in error.message:  # the next would meet it too
                raise
            shutil.rmtree(source.scratch / variant, ignore_errors=True)
            failed[variant] = error.message
    return Outcome(built=built, failed=failed)


def _put_each(folders: Iterable[Path], out: Path) -> None:
    for folder in folders:
        put(folder, out / folder.name)
