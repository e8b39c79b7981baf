"""From a folder of artifacts to the ladder: the variants worth deploying on this cluster."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from serve_app.engines.base import Device
from serve_app.engines.cpu import this_cpu
from serve_app.engines.measure import hardware_name
from serve_app.errors import ArtifactError, SettingsError
from serve_app.manifest import MANIFEST_NAME, TOKENIZER_NAME, Manifest, verify

GPU_PRECISIONS = {"fp16"}  # at home on a GPU; a CPU runs them slower than FP32
# Losses of fidelity (1 - p1) this near are one: over the 400 probe texts, the ratio of two variants'
# losses has a standard error of 12 % (bootstrap, onnx-int8 and openvino-int8).
SAME_LOSS = 1.1
# So small a loss is none: a twentieth of what batch-mates may move a vector. FP16 on a GPU loses 6e-7; taken
# for worse than FP32, it would leave all requests for the best to the cores, at a thousand times its cost.
NO_LOSS = 5e-6


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
    caveat: str | None = None  # why other variants may belong on it here, and what to do

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
    rungs = _rungs(_artifact_folders(artifacts).values(), gpus=gpus)
    return _measured_ladder(rungs, artifacts)


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
    device: Device = "cuda" if gpus and _belongs_on_gpu(manifest) else "cpu"
    return Rung(folder=folder, manifest=manifest, device=device)


def _belongs_on_gpu(manifest: Manifest) -> bool:
    """What needs one, and what was measured on one: an ONNX variant runs where its build had it run."""
    return wants_gpu(manifest) or manifest.profile.device == "cuda"


def may_use_gpu(manifest: Manifest) -> bool:
    """Whether a GPU that is there should be tried: ONNX Runtime has FP16 kernels for GPUs only."""
    return wants_gpu(manifest) or (manifest.runtime, manifest.precision) == ("onnx", "fp16")


def wants_gpu(manifest: Manifest) -> bool:
    """ONNX Runtime's FP16 is storage only, so it may run on a CPU; what it costs there is measured."""
    on_torch = manifest.runtime == "torch" and manifest.precision in GPU_PRECISIONS
    return on_torch or manifest.runtime == "tensorrt"


def _measured_ladder(rungs: list[Rung], artifacts: Path) -> Ladder:
    """The Pareto front of fidelity and cost; a rung that another beats on both stays off."""
    deployable, off = [], []
    for rung in rungs:
        reason = _unfit(rung)
        if reason is None:
            deployable.append(rung)
        else:
            off.append(OffLadder(variant=rung.manifest.variant, reason=reason))
    front: list[Rung] = []
    # Cheapest first, so that only a rung that stays can push another off; sorting keeps ties' order.
    for rung in sorted(deployable, key=_cost):
        winner = next((f for f in front if _dominates(f, rung)), None)
        if winner is None:
            front.append(rung)
        else:
            off.append(_dominated(rung, winner))
    return Ladder(
        rungs=tuple(r for r in rungs if r in front),
        off=tuple(off),
        caveat=_caveat(deployable, artifacts),
    )


def _caveat(rungs: list[Rung], artifacts: Path) -> str | None:
    """Costs from other hardware order a ladder for that hardware.

    GPU profiles are not looked at: who plans for a cluster may have no GPU itself.
    """
    here = hardware_name("cpu")
    elsewhere: dict[str, list[str]] = {}
    for rung in rungs:
        profile = rung.manifest.profile
        if profile.device == "cpu" and profile.hardware != here:
            elsewhere.setdefault(profile.hardware, []).append(rung.manifest.variant)
    if not elsewhere:
        return None
    told = "; ".join(f"{', '.join(names)} on {name!r}" for name, names in elsewhere.items())
    return (
        f"profiles measured on other hardware ({told}; here is {here!r}): another ladder may be "
        f"right here; measure again with `python -m converters measure --out {artifacts}`"
    )


def _unfit(rung: Rung) -> str | None:
    manifest = rung.manifest
    if manifest.off_ladder is not None:
        return manifest.off_ladder
    if not manifest.batch_invariant:
        return f"vectors move with their batch-mates (drift {manifest.fidelity.batch_drift:.1e})"
    if wants_gpu(manifest) and rung.device == "cpu":
        return "needs a GPU, and this cluster has none"
    if rung.device == "cpu" and manifest.profile.device == "cuda":
        return "was measured on a GPU, and this cluster has none; measure it again"
    if rung.device == "cpu":  # of a cluster's other nodes nothing is known: there it can be named
        return this_cpu().lacks(manifest.runtime, manifest.precision)
    return None


def _dominates(cheaper: Rung, rung: Rung) -> bool:
    """A profile of another device than the rung's proves nothing."""
    measured_where_run = all(r.device == r.manifest.profile.device for r in (cheaper, rung))
    return measured_where_run and beats(cheaper.manifest, rung.manifest)


def beats(manifest: Manifest, other: Manifest) -> bool:
    """Whether a variant costs no more than another and loses, as surely as is known, no more."""
    loss, other_loss = 1 - manifest.fidelity.p1, 1 - other.fidelity.p1
    loses_no_more = loss <= max(SAME_LOSS * other_loss, NO_LOSS)
    return manifest.profile.cost_ms <= other.profile.cost_ms and loses_no_more


def _cost(rung: Rung) -> float:
    return rung.manifest.profile.cost_ms


def _dominated(rung: Rung, winner: Rung) -> OffLadder:
    reason = (
        f"{winner.manifest.variant} has fidelity {winner.manifest.fidelity.p1:.4f} "
        f"to its {rung.manifest.fidelity.p1:.4f} at {_cost(winner) / _cost(rung):.2f} of its cost"
    )
    return OffLadder(variant=rung.manifest.variant, reason=reason)
