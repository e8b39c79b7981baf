"""The build: convert, compare with FP32, profile, and only then put each artifact in its place.

Work goes on in a hidden folder beside the artifacts; a finished variant replaces the old one by a
rename. An interrupted build leaves the old artifacts as they were.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converters import fidelity, latency
from converters.gates import MAX_DRIFT, gate
from converters.provenance import command_line, commit, tool_versions
from converters.recipes import Notes, Recipe, Source
from converters.tasks import Tasks, against_fp32
from converters.workplace import Step, put, workplace
from serve_app.engines.base import Device, Engine, TokenIds, Vectors, open_engine
from serve_app.engines.measure import Setup, hardware_name
from serve_app.errors import ConversionError
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
class Options:
    """How to build."""

    threads: int = 1  # of the profile: as many as a replica will have
    recover_minutes: float | None = None  # static INT8 learns from its FP32 self; None: not at all


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A variant whose files are there, before it is measured."""

    folder: Path
    spec: Variant
    device: Device
    notes: Notes


def build(
    checkpoint: Checkpoint,
    recipes: Mapping[str, Recipe],
    *,
    texts: Texts,
    out: Path,
    options: Options,
    step: Step,
) -> list[Manifest]:
    """Build variants of a checkpoint into `out`.

    Args:
        checkpoint: the source.
        recipes: by the variant's name; each must be buildable here.
        texts: calibration and probe texts, disjoint.
        out: the artifacts folder; made if missing.
        options: see `Options`.
        step: wraps each step, to show progress.

    Raises:
        ConversionError: a conversion failed, there are too few texts, or `out` cannot be written.
    """
    if not texts.calibration or not texts.probe:
        raise ConversionError("too few texts: one must calibrate and another measure")
    with workplace(out, step) as scratch:
        source = Source(
            checkpoint, texts.calibration, scratch, recover_minutes=options.recover_minutes
        )
        converted = {
            variant: _convert(source, variant, recipe, step=step)
            for variant, recipe in recipes.items()
        }
        manifests = _measure(checkpoint, converted, texts=texts, options=options, step=step)
        for variant, manifest in manifests.items():
            write_manifest(converted[variant].folder, manifest)
            put(converted[variant].folder, out / variant)
    return list(manifests.values())


def _convert(source: Source, variant: str, recipe: Recipe, *, step: Step) -> Converted:
    folder, checkpoint = source.scratch / variant, source.checkpoint
    folder.mkdir()
    with step(f"{variant}: convert"):
        notes = recipe.convert(source, folder) or Notes()
        shutil.copyfile(checkpoint.tokenizer_file, folder / TOKENIZER_NAME)
    spec = Variant(
        variant=variant,
        runtime=recipe.runtime,
        precision=recipe.precision,
        checkpoint=checkpoint.facts,
        tokenizer=checkpoint.tokenizer,
        kept_fp32=notes.kept_fp32,
        autocast=recipe.autocast,
    )
    return Converted(folder=folder, spec=spec, device=_device(recipe), notes=notes)


def _measure(
    checkpoint: Checkpoint,
    converted: Mapping[str, Converted],
    *,
    texts: Texts,
    options: Options,
    step: Step,
) -> dict[str, Manifest]:
    with step("FP32 reference vectors"):
        fp32 = fidelity.reference_engine(checkpoint)
        reference = fidelity.embed_sorted(fp32, texts.probe)
        fp32_scores = texts.tasks.scores(partial(fidelity.embed_sorted, fp32))
    engines: dict[str, Engine] = {}
    found: dict[str, Fidelity] = {}
    setups: dict[str, Setup] = {}
    for variant, c in converted.items():
        with step(f"{variant}: fidelity over {len(texts.probe)} texts"):
            setups[variant] = latency.setup(
                c.folder, c.spec, threads=options.threads, device=c.device
            )
            engines[variant] = open_engine(
                c.folder, c.spec, threads=options.threads, device=c.device
            )
            scores = texts.tasks.scores(partial(fidelity.embed_sorted, engines[variant]))
            found[variant] = fidelity.measure(
                engines[variant],
                reference,
                texts.probe,
                tasks=against_fp32(scores, fp32_scores),
            )
    profiles: dict[str, Profile] = {}
    for device in sorted({c.device for c in converted.values()}):
        with step(f"profile on {hardware_name(device)}"):
            profiles |= latency.profile_all(
                {v: e for v, e in engines.items() if converted[v].device == device},
                setups,
                max_tokens=checkpoint.facts.max_tokens,
            )
    return {
        variant: _manifest(
            c,
            found[variant],
            profiles[variant],
            recovered=_recovered(c, found[variant], reference, texts.probe),
        )
        for variant, c in converted.items()
    }


def _recovered(
    converted: Converted, found: Fidelity, reference: Vectors, probe: Sequence[TokenIds]
) -> Recovered | None:
    recovery = converted.notes.recovery
    if recovery is None:
        return None
    plain = open_engine(recovery.plain, converted.spec)
    before = fidelity.cosines(fidelity.embed_sorted(plain, probe), reference)
    return Recovered(
        p1_before=float(np.percentile(before, 1)),
        p1_after=found.p1,
        minutes=recovery.minutes,
        texts=recovery.texts,
    )


def _manifest(
    converted: Converted, found: Fidelity, profile: Profile, *, recovered: Recovered | None
) -> Manifest:
    spec = converted.spec
    return Manifest(
        variant=spec.variant,
        runtime=spec.runtime,
        precision=spec.precision,
        checkpoint=spec.checkpoint,
        tokenizer=spec.tokenizer,
        kept_fp32=spec.kept_fp32,
        autocast=spec.autocast,
        format_version=FORMAT_VERSION,
        files=describe_files(converted.folder),
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
    if not recipe.gpu:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
