"""One variant from its recipe to a finished artifact: files, fidelity, a profile, and the manifest.

The profile is one of a few seconds, measured alone: enough to serve with, should the build die before
it has measured all variants side by side.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converters import fidelity, latency
from converters.gates import MAX_DRIFT, gate
from converters.provenance import command_line, commit, tool_versions
from converters.recipes import Notes, Recipe
from converters.source import Source
from converters.tasks import Tasks, against_fp32
from converters.workplace import Step
from serve_app.engines.base import Device, Engine, TokenIds, Vectors, open_engine
from serve_app.engines.measure import quick_profile
from serve_app.manifest import (
    FORMAT_VERSION,
    TOKENIZER_NAME,
    Fidelity,
    Manifest,
    Profile,
    Recovered,
    Variant,
    describe_files,
    write_manifest,
)

if TYPE_CHECKING:
    from converters.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Token ids of the texts that calibrate, and of the others, that measure; and tasks to score."""

    calibration: Sequence[TokenIds]
    probe: Sequence[TokenIds]
    tasks: Tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What variants are compared with: FP32's vectors, and its scores on the tasks."""

    texts: Texts
    vectors: Vectors
    scores: dict[str, float]

    @classmethod
    def of(cls, checkpoint: Checkpoint, texts: Texts) -> Reference:
        """Run the FP32 checkpoint."""
        embed = partial(fidelity.embed_sorted, fidelity.reference_engine(checkpoint))
        return cls(texts=texts, vectors=embed(texts.probe), scores=texts.tasks.scores(embed))

    def fidelity(self, engine: Engine) -> Fidelity:
        """How close an engine comes, on everything that was asked for."""
        scores = self.texts.tasks.scores(partial(fidelity.embed_sorted, engine))
        tasks = against_fp32(scores, self.scores)
        return fidelity.measure(engine, self.vectors, self.texts.probe, tasks=tasks)

    def p1(self, engine: Engine) -> float:
        """How close it comes, in one number."""
        vectors = fidelity.embed_sorted(engine, self.texts.probe)
        return float(np.percentile(fidelity.cosines(vectors, self.vectors), 1))


def finish(
    source: Source,
    variant: str,
    recipe: Recipe,
    *,
    reference: Reference,
    threads: int,
    step: Step,
) -> Manifest:
    """Make the artifact `source.scratch / variant`, whole, with its manifest.

    Args:
        source: what recipes start from.
        variant: the name.
        recipe: how it is made.
        reference: what it is compared with.
        threads: of a replica.
        step: wraps each step, to show progress.

    Raises:
        SetupError: this variant cannot be made of this checkpoint, or does not open here.
    """
    folder, checkpoint = source.scratch / variant, source.checkpoint
    folder.mkdir()
    with step(f"{variant}: convert"):
        notes = recipe.convert(source, folder) or Notes()
        shutil.copyfile(checkpoint.tokenizer_file, folder / TOKENIZER_NAME)
    spec = recipe.variant(variant, checkpoint, notes=notes)
    device = _device(recipe)
    # What needs a GPU that is not here runs in no replica, and its vectors are long in coming.
    if recipe.gpu and device == "cpu":
        threads = os.cpu_count() or threads
    with step(f"{variant}: fidelity over {len(reference.texts.probe)} texts"):
        setup = latency.setup(folder, spec, threads=threads, device=device)
        engine = open_engine(folder, spec, threads=threads, device=device)
        found = reference.fidelity(engine)
        recovered = _recovered(spec, notes, found, reference)
    with step(f"{variant}: first profile"):
        profile = quick_profile(engine, setup, max_tokens=checkpoint.facts.max_tokens)
    manifest = _manifest(folder, spec, found, profile=profile, recovered=recovered)
    write_manifest(folder, manifest)
    return manifest


def _recovered(
    spec: Variant, notes: Notes, found: Fidelity, reference: Reference
) -> Recovered | None:
    recovery = notes.recovery
    if recovery is None:
        return None
    return Recovered(
        p1_before=reference.p1(open_engine(recovery.plain, spec)),
        p1_after=found.p1,
        minutes=recovery.minutes,
        texts=recovery.texts,
    )


def _manifest(
    folder: Path,
    spec: Variant,
    found: Fidelity,
    *,
    profile: Profile,
    recovered: Recovered | None,
) -> Manifest:
    return Manifest(
        **latency.variant_fields(spec),
        format_version=FORMAT_VERSION,
        files=describe_files(folder),
        fidelity=found,
        batch_invariant=found.batch_drift <= MAX_DRIFT,
        off_ladder=gate(spec.precision, found),
        recovered=recovered,
        profile=profile,
        tools=tool_versions(),
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(Path(__file__).parent),
        command=command_line(),
    )


def _device(recipe: Recipe) -> Device:
    """A variant for GPUs is measured where it will run, if this machine has one."""
    return "cuda" if recipe.gpu and latency.gpu_runs(recipe.runtime) else "cpu"
