"""What all tests share: an artifact that needs no weights, and a router around it without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from serve_app.manifest import (
    FORMAT_VERSION,
    TOKENIZER_NAME,
    Checkpoint,
    Fidelity,
    Manifest,
    Profile,
    Tokenizer as TokenizerFacts,
    describe_files,
    sha256_of,
    write_manifest,
)

WORDS = "[PAD] [UNK] [CLS] [SEP] a the query text of hello world warm - up".split()
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

MakeArtifact = Callable[..., Manifest]


def write_tokenizer(file: Path) -> None:
    """A word-level tokenizer with BERT's special tokens."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(file))


def write_artifact(folder: Path, *, p1: float, cost_ms: float, drift: float = 0.0) -> Manifest:
    """A whole artifact of the fake runtime, named after its folder."""
    folder.mkdir(parents=True)
    write_tokenizer(folder / TOKENIZER_NAME)
    (folder / "model.onnx").write_bytes(folder.name.encode())
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        variant=folder.name,
        runtime="fake",
        precision=folder.name.rpartition("-")[2],
        checkpoint=Checkpoint(
            name="tiny", digest="0" * 64, dims=8, max_tokens=16, pooling="mean"
        ),
        tokenizer=TokenizerFacts(
            digest=sha256_of(folder / TOKENIZER_NAME), pad_id=0, vocab_size=len(WORDS)
        ),
        files=describe_files(folder),
        fidelity=Fidelity(mean=p1, p1=p1, min=p1, batch_drift=drift, probe_texts=1),
        batch_invariant=drift <= 1e-4,
        off_ladder=None,
        profile=Profile(
            hardware="a test",
            device="cpu",
            threads=1,
            base_ms=0.0,
            per_token_ms=cost_ms,
            spread=1.2,
            batch_tokens=64,
        ),
        tools={},
        built_at="2026-01-01T00:00:00+00:00",
        command="a test",
    )
    write_manifest(folder, manifest)
    return manifest


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """Three variants on a proper ladder: dearer means closer."""
    folder = tmp_path / "artifacts"
    write_artifact(folder / "fake-fp32", p1=1.0, cost_ms=0.3)
    write_artifact(folder / "fake-bf16", p1=0.9995, cost_ms=0.2)
    write_artifact(folder / "fake-int8", p1=0.985, cost_ms=0.1)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real evaluation data of the workshop; not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no ../shared/data beside this checkout: real evaluation data is absent")
    return SHARED_DATA
