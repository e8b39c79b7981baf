"""What the report says, gathered: the manifests as built, and what only a run over all can tell."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from converters.checkpoint import Checkpoint
from converters.claims import TORCH, TORCH_GPU, Claim, claims, weight_bytes
from converters.fidelity import embed_sorted, reference_engine
from converters.finish import Texts
from converters.latency import gpu_count, measured_grids
from converters.provenance import Provenance, provenance
from converters.retrieval import Split, cross_table
from converters.tasks import against_fp32
from converters.workplace import Step
from serve_app.engines.base import MODEL_FILES, Device, Engine, open_engine
from serve_app.errors import ArtifactError, ConversionError
from serve_app.manifest import MANIFEST_NAME, GridCell, Manifest, TaskScore, read_manifest
from serve_app.registry import GPU_PRECISIONS, Ladder, beats, load_ladder

YARDSTICKS: dict[Device, str] = {"cpu": TORCH, "cuda": TORCH_GPU}


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """The report's content; its JSON is this."""

    provenance: Provenance
    model: str
    manifests: tuple[Manifest, ...]  # highest fidelity first
    off: dict[str, str]  # variant -> why it is not on the ladder
    cross: dict[str, dict[str, float]]  # documents' variant -> queries' variant -> overlap
    tasks: dict[str, dict[str, TaskScore]]  # variant -> measure -> score
    yardsticks: dict[str, tuple[GridCell, ...]]  # one interleaved run, PyTorch FP32 among them
    claims: tuple[Claim, ...]

    @property
    def ladder(self) -> tuple[Manifest, ...]:
        """The variants on the ladder, highest fidelity first."""
        return tuple(m for m in self.manifests if m.variant not in self.off)

    def beaten_by(self, manifest: Manifest) -> str | None:
        """The variant on the ladder that has the fidelity at no more cost, if one has."""
        rungs = (rung for rung in self.ladder if rung != manifest)
        return next((rung.variant for rung in rungs if beats(rung, manifest)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A folder of artifacts, each file as promised, and the ladder chosen from it."""

    folder: Path
    ladder: Ladder
    manifests: tuple[Manifest, ...]

    @classmethod
    def read(cls, folder: Path) -> Built:
        """Raises `ArtifactError` where nothing is built or a promise is broken."""
        files = sorted(folder.glob(f"*/{MANIFEST_NAME}"))
        return cls(
            folder=folder,
            ladder=load_ladder(folder, gpus=gpu_count()),
            manifests=tuple(read_manifest(file.parent) for file in files),
        )


def gather(checkpoint: Checkpoint, built: Built, *, texts: Texts, step: Step) -> Findings:
    """Run every variant of the ladder over the probe texts, and beside PyTorch FP32.

    Args:
        checkpoint: what the variants were built from.
        built: the variants.
        texts: probe texts, and tasks to score; without tasks, the manifests' scores are shown.
        step: wraps each step, to show progress.

    Raises:
        ConversionError: the artifacts were built from another checkpoint.
    """
    ladder, manifests, probe, tasks = built.ladder, built.manifests, texts.probe, texts.tasks
    _require_same(checkpoint, ladder.rungs[0].manifest)
    fp32 = reference_engine(checkpoint)
    with step("FP32 reference vectors"):
        reference = embed_sorted(fp32, probe)
        fp32_scores = tasks.scores(partial(embed_sorted, fp32))
    vectors, engines, scores = {}, {}, {m.variant: m.fidelity.tasks for m in manifests}
    for rung in ladder.rungs:
        name = rung.manifest.variant
        with step(f"{name}: vectors of {len(probe)} texts"):
            engines[name] = _open(rung.folder, rung.manifest, rung.device)
            vectors[name] = embed_sorted(engines[name], probe)
            own = tasks.scores(partial(embed_sorted, engines[name]))
            scores[name] = scores[name] | against_fp32(own, fp32_scores)
    with step("times beside PyTorch FP32"):
        grids = _grids(checkpoint, _by_device(built, engines))
    weights = {
        m.variant: weight_bytes(built.folder / m.variant / MODEL_FILES["onnx"])
        for m in manifests
        if MODEL_FILES["onnx"] in m.files
    }
    ordered = sorted(manifests, key=lambda m: (-m.fidelity.p1, m.profile.cost_ms))
    return Findings(
        provenance=provenance(),
        model=checkpoint.facts.name,
        manifests=tuple(ordered),
        off={o.variant: o.reason for o in ladder.off},
        cross=cross_table(vectors, reference, Split.by_length(probe)),
        tasks={variant: found for variant, found in scores.items() if found},
        yardsticks=grids,
        claims=tuple(claims(ordered, grids, weights=weights, gpu=gpu_count() > 0)),
    )


def _require_same(checkpoint: Checkpoint, manifest: Manifest) -> None:
    if manifest.checkpoint.digest != checkpoint.facts.digest:
        raise ConversionError(
            f"the artifacts are of another checkpoint ({manifest.checkpoint.name}): "
            "name theirs with --checkpoint"
        )


def _open(folder: Path, manifest: Manifest, device: Device) -> Engine:
    return open_engine(folder, manifest, threads=manifest.profile.threads, device=device)


def _by_device(built: Built, engines: dict[str, Engine]) -> dict[Device, dict[str, Engine]]:
    """The ladder's engines, and on the CPU those off the ladder that have a claim to check."""
    found: dict[Device, dict[str, Engine]] = {"cpu": {}, "cuda": {}}
    for rung in built.ladder.rungs:
        found[rung.device][rung.manifest.variant] = engines[rung.manifest.variant]
    for m in built.manifests:
        if m.variant not in engines and m.precision not in GPU_PRECISIONS:
            with suppress(ArtifactError):  # its runtime is not for this machine
                found["cpu"][m.variant] = _open(built.folder / m.variant, m, "cpu")
    return found


def _grids(
    checkpoint: Checkpoint, engines: dict[Device, dict[str, Engine]]
) -> dict[str, tuple[GridCell, ...]]:
    """One interleaved run a device; PyTorch runs as its users do, with fused attention."""
    from serve_app.engines.torch_engine import TorchEngine

    facts, pad_id = checkpoint.facts, checkpoint.tokenizer.pad_id
    found: dict[str, tuple[GridCell, ...]] = {}
    for device, here in engines.items():
        if here:
            model = checkpoint.load_model()
            with suppress(ValueError, NotImplementedError):  # an architecture without it
                model.set_attn_implementation("sdpa")
            torch_engine = TorchEngine(model, pooling=facts.pooling, pad_id=pad_id, device=device)
            yardstick: dict[str, Engine] = {YARDSTICKS[device]: torch_engine}
            found |= measured_grids(yardstick | here, max_tokens=facts.max_tokens)
    return found
