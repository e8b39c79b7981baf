"""The build: convert, compare with FP32, profile, and only then put each artifact in its place.

`workplace.py` says where the work goes on, and why an interrupted build harms nothing.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from converters import fidelity, latency
from converters.checkpoint import Checkpoint
from converters.recipes import MAX_DRIFT, RECIPES, Notes, Source, gate
from converters.workplace import Step, put, workplace
from serve_app.engines.base import Device, Engine, TokenIds, Vectors, open_engine
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

TOOLS = ("torch", "transformers", "tokenizers", "onnx", "onnxruntime", "openvino", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Token ids of the texts that calibrate, and of the others, that measure."""

    calibration: Sequence[TokenIds]
    probe: Sequence[TokenIds]


def build(  # noqa: PLR0913 - one a flag of the command
    checkpoint: Checkpoint,
    variants: Sequence[str],
    *,
    texts: Texts,
    out: Path,
    threads: int,
    step: Step,
    recover_minutes: float | None = None,
) -> list[Manifest]:
    """Build variants of a checkpoint into `out`.

    Args:
        checkpoint: the source.
        variants: names from `RECIPES`, each buildable here.
        texts: calibration and probe texts, disjoint.
        out: the artifacts folder; made if missing.
        threads: compute threads for the profile: as many as a replica will have.
        step: wraps each step, to show progress.
        recover_minutes: how long `onnx-int8` learns from its FP32 self; None for not at all.

    Raises:
        ConversionError: a conversion failed, there are too few texts, or `out` cannot be written.
    """
    if not texts.calibration or not texts.probe:
        raise ConversionError("too few texts: one must calibrate and another measure")
    with workplace(out, step) as scratch:
        source = Source(
            checkpoint,
            texts.calibration,
            scratch,
            probe=texts.probe,
            recover_minutes=recover_minutes,
        )
        notes = _convert(source, variants, step=step)
        folders = {variant: scratch / variant for variant in variants}
        manifests = _measure(source, folders, notes, threads=threads, step=step)
        for variant, manifest in manifests.items():
            write_manifest(folders[variant], manifest)
            put(folders[variant], out / variant)
    return list(manifests.values())


def _convert(source: Source, variants: Sequence[str], *, step: Step) -> dict[str, Notes]:
    notes = {}
    for variant in variants:
        folder = source.scratch / variant
        folder.mkdir()
        with step(f"{variant}: convert"):
            notes[variant] = RECIPES[variant].convert(source, folder) or Notes()
            shutil.copyfile(source.checkpoint.tokenizer_file, folder / TOKENIZER_NAME)
    return notes


def _measure(
    source: Source,
    folders: dict[str, Path],
    notes: dict[str, Notes],
    *,
    threads: int,
    step: Step,
) -> dict[str, Manifest]:
    checkpoint, probe = source.checkpoint, source.probe
    with step("FP32 reference vectors"):
        reference = fidelity.embed_sorted(fidelity.reference_engine(checkpoint), probe)
    specs = {variant: _spec(checkpoint, variant, notes[variant]) for variant in folders}
    engines: dict[str, Engine] = {}
    found: dict[str, Fidelity] = {}
    for variant, folder in folders.items():
        with step(f"{variant}: fidelity over {len(probe)} texts"):
            engines[variant] = open_engine(
                folder, specs[variant], threads=threads, device=_device(variant)
            )
            found[variant] = fidelity.measure(engines[variant], reference, probe)
    profiles: dict[str, Profile] = {}
    for device in sorted({_device(variant) for variant in folders}):
        with step(f"profile on {latency.hardware_name(device)}"):
            profiles |= latency.profile_all(
                {v: e for v, e in engines.items() if _device(v) == device},
                max_tokens=checkpoint.facts.max_tokens,
                threads=threads,
                device=device,
            )
    return {
        variant: replace(
            _manifest(specs[variant], folder, found[variant], profile=profiles[variant]),
            recovered=_recovered(specs[variant], notes[variant], found[variant], reference, probe),
        )
        for variant, folder in folders.items()
    }


def _recovered(
    spec: Variant,
    notes: Notes,
    found: Fidelity,
    reference: Vectors,
    probe: Sequence[TokenIds],
) -> Recovered | None:
    if notes.recovery is None:
        return None
    plain = open_engine(notes.recovery.plain, spec)
    before = fidelity.cosines(fidelity.embed_sorted(plain, probe), reference)
    return Recovered(
        p1_before=float(np.percentile(before, 1)),
        p1_after=found.p1,
        minutes=notes.recovery.minutes,
        texts=notes.recovery.texts,
    )


def _spec(checkpoint: Checkpoint, variant: str, notes: Notes) -> Variant:
    recipe = RECIPES[variant]
    return Variant(
        variant=variant,
        runtime=recipe.runtime,
        precision=recipe.precision,
        checkpoint=checkpoint.facts,
        tokenizer=checkpoint.tokenizer,
        kept_fp32=notes.kept_fp32,
        autocast=recipe.autocast,
    )


def _manifest(spec: Variant, folder: Path, found: Fidelity, *, profile: Profile) -> Manifest:
    return Manifest(
        variant=spec.variant,
        runtime=spec.runtime,
        precision=spec.precision,
        checkpoint=spec.checkpoint,
        tokenizer=spec.tokenizer,
        kept_fp32=spec.kept_fp32,
        autocast=spec.autocast,
        format_version=FORMAT_VERSION,
        files=describe_files(folder),
        fidelity=found,
        batch_invariant=found.batch_drift <= MAX_DRIFT,
        off_ladder=gate(spec.precision, found),
        profile=profile,
        tools=tool_versions(),
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "converters", *sys.argv[1:]]),
    )


def _device(variant: str) -> Device:
    """FP16 is measured where it will run: on a GPU, if this machine has one."""
    if RECIPES[variant].runtime != "torch":
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def tool_versions() -> dict[str, str]:
    """Versions of the packages that decide vectors and speed."""
    found = {}
    for package in TOOLS:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
