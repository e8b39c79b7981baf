"""What an artifact promises: the dataclasses behind `manifest.json`.

An artifact is a folder with the files of one variant. Import these from `serve_app.manifest`, which
reads, verifies and writes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

TOKENIZER_NAME = "tokenizer.json"
FORMAT_VERSION = 2

Runtime = Literal["onnx", "openvino", "tensorrt", "torch", "litert", "fake"]
Pooling = Literal["mean", "cls", "lasttoken", "max", "weightedmean", "mean_sqrt_len"]
# What happens to a pooled vector before it gets unit length; the weights are the engine's business.
HeadStep = Literal[
    "dense", "tanh", "relu", "gelu", "sigmoid", "silu", "leaky_relu", "normalize", "truncate"
]


class _Strict:
    """Makes pydantic refuse keys that a dataclass does not know."""

    __slots__ = ()
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts(_Strict):
    """What the checkpoint wants put before a text, by what the text is; empty for nothing."""

    query: str
    document: str
    default: str  # for a text of which nothing is said


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(_Strict):
    """The source model, as its artifacts remember it."""

    name: str
    digest: str  # sha256 over the names and bytes of the files that decide the vectors
    dims: int
    max_tokens: int  # special tokens included
    pooling: Pooling
    head: tuple[HeadStep, ...]  # in order, after pooling; always followed by unit length
    prompts: Prompts
    matryoshka_dims: tuple[int, ...]  # lengths to which vectors may be cut, as it was trained for


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer(_Strict):
    """The tokenizer that the vectors were measured with."""

    digest: str  # sha256 of tokenizer.json
    pad_id: int
    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class File(_Strict):
    """One file of the artifact."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap(_Strict):
    """Mean share of FP32's ten nearest documents that are kept, 0 to 1, over probe queries."""

    both: float  # queries and documents by the variant
    queries: float  # queries by the variant, documents by FP32
    documents: float  # documents by the variant, queries by FP32


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift(_Strict):
    """Largest 1 - cosine between a text's vector alone and the same text's another way."""

    alone: float  # alone once more, after all the other batches
    sorted_batch: float  # among texts of like length, as a replica runs it
    beside_longest: float  # one of two, the other a longest text
    padded: float  # in an unsorted batch that a longest text makes wide

    @property
    def largest(self) -> float:
        return max(self.alone, self.sorted_batch, self.beside_longest, self.padded)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore(_Strict):
    """A score of 0 to 100 on a task with right answers, and that of the FP32 checkpoint."""

    points: float
    fp32_points: float

    @property
    def lost_points(self) -> float:
        return self.fp32_points - self.points


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity(_Strict):
    """Cosine between this variant's vectors and the FP32 checkpoint's over the probe texts."""

    mean: float
    p1: float  # 99 % of the texts are at least this close: "the" fidelity
    min: float
    overlap: Overlap
    drift: Drift
    probe_texts: int
    tasks: dict[str, TaskScore]  # by the name of the measure, as "nDCG@10"; only where asked for

    @property
    def batch_drift(self) -> float:
        """How far batch-mates and padding move a vector, at most: 1 - cosine."""
        return self.drift.largest


@dataclass(frozen=True, slots=True, kw_only=True)
class GridCell(_Strict):
    """One measured batch."""

    texts: int
    tokens: int  # of each text
    median_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile(_Strict):
    """Measured time of a batch on one kind of hardware: `base_ms + per_token_ms * padded tokens`."""

    hardware: str  # what it was measured on, as `engines.measure.hardware_name` names it
    device: Literal["cpu", "cuda"]
    threads: int
    base_ms: float
    per_token_ms: float
    spread: float  # p95 of measured / fitted time, >= 1
    batch_tokens: int  # the padded tokens a batch should hold
    grid: tuple[GridCell, ...]  # what was measured
    load_ms: float  # from the files to a ready engine
    resident_bytes: int  # of a whole process with this engine, after its largest batch

    @property
    def cost_ms(self) -> float:
        """Milliseconds per token in a full batch: what "cheaper" means everywhere."""
        return self.base_ms / self.batch_tokens + self.per_token_ms

    def fitted_ms(self, padded_tokens: int) -> float:
        """What the fit says a batch takes."""
        return self.base_ms + self.per_token_ms * padded_tokens

    @property
    def residuals(self) -> tuple[float, ...]:
        """Of each cell of the grid: measured / fitted - 1."""
        return tuple(c.median_ms / self.fitted_ms(c.texts * c.tokens) - 1 for c in self.grid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant(_Strict):
    """One way to run one checkpoint: all that an engine needs to know besides its files."""

    variant: str
    runtime: Runtime
    precision: str
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    kept_fp32: tuple[str, ...] = ()  # modules of an FP16 model that run in FP32, by dotted name
    autocast: bool = False  # FP32 weights, products in `precision`


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered(_Strict):
    """What quantisation-aware recovery did: fidelity (p1) without it and with it."""

    p1_before: float
    p1_after: float
    minutes: float
    texts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(Variant):
    """A variant with its files, what it promises, and how that was measured."""

    format_version: int
    files: dict[str, File]
    fidelity: Fidelity
    batch_invariant: bool
    off_ladder: str | None  # why the variant must not be deployed unless named, or None
    profile: Profile
    tools: dict[str, str]  # package name -> version
    built_at: str  # ISO 8601, UTC
    commit: str  # of the sources that built and measured it
    command: str
    recovered: Recovered | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the variant's own files, without the tokenizer that all variants share."""
        return sum(f.size_bytes for name, f in self.files.items() if name != TOKENIZER_NAME)
