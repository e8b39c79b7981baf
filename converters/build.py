"""The build: convert, compare with FP32, profile, and only then put each artifact in its place.

Work goes on in a hidden folder beside the artifacts; a finished variant replaces the old one by a
rename. An interrupted build leaves the old artifacts as they were.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from converters import fidelity, latency
from converters.checkpoint import Checkpoint
from converters.gates import MAX_DRIFT, gate
from converters.provenance import command_line, commit, tool_versions
from converters.recipes import Recipe, Source
from converters.tasks import Tasks, against_fp32
from serve_app.engines.base import Device, Engine, TokenIds, open_engine
from serve_app.engines.measure import Setup, hardware_name
from serve_app.errors import ConversionError
from serve_app.manifest import (
    FORMAT_VERSION,
    TOKENIZER_NAME,
    Fidelity,
    Manifest,
    Profile,
    Variant,
    describe_files,
    write_manifest,
)

Step = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Token ids of the texts that calibrate, and of the others, that measure; and tasks to score."""

    calibration: Sequence[TokenIds]
    probe: Sequence[TokenIds]
    tasks: Tasks


def build(
    checkpoint: Checkpoint,
    recipes: Mapping[str, Recipe],
    *,
    texts: Texts,
    out: Path,
    threads: int,
    step: Step,
) -> list[Manifest]:
    """Build variants of a checkpoint into `out`.

    Args:
        checkpoint: the source.
        recipes: by the variant's name; each must be buildable here.
        texts: calibration and probe texts, disjoint.
        out: the artifacts folder; made if missing.
        threads: compute threads for the profile: as many as a replica will have.
        step: wraps each step, to show progress.

    Raises:
        ConversionError: a conversion failed, or `out` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=out))
    except OSError as error:
        raise ConversionError(f"{out}: cannot be written ({error.strerror})") from error
    try:
        folders = _convert(checkpoint, recipes, texts=texts, scratch=scratch, step=step)
        manifests = _measure(checkpoint, recipes, folders, texts=texts, threads=threads, step=step)
        for variant, manifest in manifests.items():
            write_manifest(folders[variant], manifest)
            _put(folders[variant], out / variant)
    except OSError as error:
        raise ConversionError(f"{out}: writing failed ({error.strerror})") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return list(manifests.values())


def _convert(
    checkpoint: Checkpoint,
    recipes: Mapping[str, Recipe],
    *,
    texts: Texts,
    scratch: Path,
    step: Step,
) -> dict[str, Path]:
    source = Source(checkpoint, texts.calibration, scratch)
    folders = {}
    for variant, recipe in recipes.items():
        folders[variant] = scratch / variant
        folders[variant].mkdir()
        with step(f"{variant}: convert"):
            recipe.convert(source, folders[variant])
            shutil.copyfile(checkpoint.tokenizer_file, folders[variant] / TOKENIZER_NAME)
    return folders


def _measure(
    checkpoint: Checkpoint,
    recipes: Mapping[str, Recipe],
    folders: Mapping[str, Path],
    *,
    texts: Texts,
    threads: int,
    step: Step,
) -> dict[str, Manifest]:
    specs = {variant: _spec(checkpoint, variant, recipe) for variant, recipe in recipes.items()}
    devices = {variant: _device(recipe) for variant, recipe in recipes.items()}
    with step("FP32 reference vectors"):
        fp32 = fidelity.reference_engine(checkpoint)
        reference = fidelity.embed_sorted(fp32, texts.probe)
        fp32_scores = texts.tasks.scores(partial(fidelity.embed_sorted, fp32))
    engines: dict[str, Engine] = {}
    found: dict[str, Fidelity] = {}
    setups: dict[str, Setup] = {}
    for variant, folder in folders.items():
        with step(f"{variant}: fidelity over {len(texts.probe)} texts"):
            spec, device = specs[variant], devices[variant]
            setups[variant] = latency.setup(folder, spec, threads=threads, device=device)
            engines[variant] = open_engine(folder, spec, threads=threads, device=device)
            scores = texts.tasks.scores(partial(fidelity.embed_sorted, engines[variant]))
            found[variant] = fidelity.measure(
                engines[variant],
                reference,
                texts.probe,
                tasks=against_fp32(scores, fp32_scores),
            )
    profiles: dict[str, Profile] = {}
    for device in sorted(set(devices.values())):
        with step(f"profile on {hardware_name(device)}"):
            profiles |= latency.profile_all(
                {v: e for v, e in engines.items() if devices[v] == device},
                setups,
                max_tokens=checkpoint.facts.max_tokens,
            )
    return {
        variant: _manifest(specs[variant], folder, found[variant], profile=profiles[variant])
        for variant, folder in folders.items()
    }


def _spec(checkpoint: Checkpoint, variant: str, recipe: Recipe) -> Variant:
    return Variant(
        variant=variant,
        runtime=recipe.runtime,
        precision=recipe.precision,
        checkpoint=checkpoint.facts,
        tokenizer=checkpoint.tokenizer,
    )


def _manifest(spec: Variant, folder: Path, found: Fidelity, *, profile: Profile) -> Manifest:
    return Manifest(
        variant=spec.variant,
        runtime=spec.runtime,
        precision=spec.precision,
        checkpoint=spec.checkpoint,
        tokenizer=spec.tokenizer,
        format_version=FORMAT_VERSION,
        files=describe_files(folder),
        fidelity=found,
        batch_invariant=found.batch_drift <= MAX_DRIFT,
        off_ladder=gate(spec.precision, found),
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


def _put(folder: Path, place: Path) -> None:
    """Move a finished artifact into place; the one that was there goes away with the scratch."""
    if place.exists():
        place.rename(folder.with_name(f"{place.name}.replaced"))
    folder.rename(place)
