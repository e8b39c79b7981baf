"""From a folder of artifacts to the ladder: the variants worth deploying on this cluster."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from serve_app.engines.base import Device
from serve_app.errors import ArtifactError, SettingsError
from serve_app.manifest import MANIFEST_NAME, TOKENIZER_NAME, Manifest, verify

GPU_PRECISIONS = {"fp16"}  # at home on a GPU; a CPU runs them slower than FP32


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One variant of the ladder: its artifact and where its engine runs."""

    folder: Path
    manifest: Manifest
    device: Device


@dataclass(frozen=True, slots=True, kw_only=True)
class OffLadder:
    """A variant that was built and is not deployed."""

    variant: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The variants to deploy, highest fidelity first."""

    rungs: tuple[Rung, ...]
    off: tuple[OffLadder, ...]

    @property
    def tokenizer_file(self) -> Path:
        """Every rung has the same tokenizer."""
        return self.rungs[0].folder / TOKENIZER_NAME


def load_ladder(artifacts: Path, *, named: tuple[str, ...] = (), gpus: float = 0) -> Ladder:
    """Verify all artifacts and choose the ladder.

    Args:
        artifacts: the folder that holds one folder a variant.
        named: deploy exactly these variants, dominated or not.
        gpus: GPUs in the cluster.

    Raises:
        ArtifactError: nothing is built, or an artifact breaks its manifest's promises.
        SettingsError: a named variant was not built.
    """
    if named:
        folders = _artifact_folders(artifacts)
        _require_built(named, folders)
        rungs = _rungs([folders[name] for name in named], gpus=gpus)
        return Ladder(rungs=tuple(rungs), off=())
    ladder = standings(artifacts, gpus=gpus)
    if not ladder.rungs:
        reasons = "; ".join(f"{o.variant}: {o.reason}" for o in ladder.off)
        raise ArtifactError(f"no variant can be deployed ({reasons}); name one with `variants`")
    return ladder


def standings(artifacts: Path, *, gpus: float = 0) -> Ladder:
    """The measured ladder of all artifacts, each verified; without rungs where none may be deployed.

    Raises:
        ArtifactError: nothing is built, or an artifact breaks its manifest's promises.
    """
    return _measured_ladder(_rungs(_artifact_folders(artifacts).values(), gpus=gpus))


def _rungs(folders: Iterable[Path], *, gpus: float) -> list[Rung]:
    rungs = [_place(folder, verify(folder), gpus=gpus) for folder in folders]
    _require_same_model(rungs)
    return sorted(rungs, key=lambda r: (-r.manifest.fidelity.p1, r.manifest.profile.cost_ms))


def _artifact_folders(artifacts: Path) -> dict[str, Path]:
    if not artifacts.is_dir():
        raise ArtifactError(
            f"no folder {artifacts}: build the variants with `python -m converters build`"
        )
    found = {path.parent.name: path.parent for path in sorted(artifacts.glob(f"*/{MANIFEST_NAME}"))}
    if not found:
        raise ArtifactError(
            f"no variant in {artifacts}: build them with `python -m converters build`"
        )
    return found


def _require_built(named: tuple[str, ...], folders: dict[str, Path]) -> None:
    for name in named:
        if name not in folders:
            built = ", ".join(folders)
            raise SettingsError(f"setting variants: {name!r} is not built; built are {built}")


def _require_same_model(rungs: list[Rung]) -> None:
    """All variants must be of one checkpoint and one tokenizer, or vectors cannot be compared."""
    first = rungs[0].manifest
    for rung in rungs[1:]:
        manifest = rung.manifest
        same = (manifest.checkpoint, manifest.tokenizer) == (first.checkpoint, first.tokenizer)
        if not same:
            raise ArtifactError(
                f"{manifest.variant} was built from another checkpoint or tokenizer than "
                f"{first.variant}: rebuild both, or use one artifacts folder a model"
            )


def _place(folder: Path, manifest: Manifest, *, gpus: float) -> Rung:
    if manifest.variant != folder.name:
        raise ArtifactError(
            f"{folder} holds {manifest.variant}: name the folder as the variant, or remove the copy"
        )
    tokenizer = manifest.files.get(TOKENIZER_NAME)
    if tokenizer is None or tokenizer.sha256 != manifest.tokenizer.digest:
        raise ArtifactError(f"{folder}: {TOKENIZER_NAME} is not the one {manifest.variant} names")
    device: Device = "cuda" if _wants_gpu(manifest) and gpus else "cpu"
    return Rung(folder=folder, manifest=manifest, device=device)


def _wants_gpu(manifest: Manifest) -> bool:
    """ONNX Runtime's FP16 is storage only, so it may run on a CPU; what it costs there is measured."""
    on_torch = manifest.runtime == "torch" and manifest.precision in GPU_PRECISIONS
    return on_torch or manifest.runtime == "tensorrt"


def _measured_ladder(rungs: list[Rung]) -> Ladder:
    """The Pareto front of fidelity and cost; a rung that another beats on both stays off."""
    deployable, off = [], []
    for rung in rungs:
        reason = _unfit(rung)
        if reason is None:
            deployable.append(rung)
        else:
            off.append(OffLadder(variant=rung.manifest.variant, reason=reason))
    front: list[Rung] = []
    for rung in deployable:  # highest fidelity first: only an earlier rung can dominate
        winner = next((f for f in front if _dominates(f, rung)), None)
        if winner is None:
            front.append(rung)
        else:
            off.append(OffLadder(variant=rung.manifest.variant, reason=_dominated(rung, winner)))
    return Ladder(rungs=tuple(front), off=tuple(off))


def _unfit(rung: Rung) -> str | None:
    manifest = rung.manifest
    if manifest.off_ladder is not None:
        return manifest.off_ladder
    if not manifest.batch_invariant:
        return f"vectors move with their batch-mates (drift {manifest.fidelity.batch_drift:.1e})"
    if _wants_gpu(manifest) and rung.device == "cpu":
        return "needs a GPU, and this cluster has none"
    return None


def _dominates(other: Rung, rung: Rung) -> bool:
    """At least the fidelity (by order) at no more cost; a profile of another device proves nothing."""
    measured_where_run = all(r.device == r.manifest.profile.device for r in (other, rung))
    return measured_where_run and _cost(other) <= _cost(rung)


def _cost(rung: Rung) -> float:
    return rung.manifest.profile.cost_ms


def _dominated(rung: Rung, winner: Rung) -> str:
    return (
        f"{winner.manifest.variant} has fidelity {winner.manifest.fidelity.p1:.4f} "
        f"to its {rung.manifest.fidelity.p1:.4f} at {_cost(winner) / _cost(rung):.2f} of its cost"
    )
