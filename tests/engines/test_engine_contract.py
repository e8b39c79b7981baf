"""One contract, every engine: the fake one always, the real ones on the real model."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from serve_app.engines.base import ONE_STREAM, Engine, TokenIds, Vectors, open_engine
from serve_app.engines.cpu import this_cpu
from serve_app.engines.fake_engine import FakeEngine
from serve_app.engines.tokenization import Tokenizer
from serve_app.manifest import TOKENIZER_NAME, Manifest, verify

GOLDEN = Path(__file__).parents[1] / "golden"
REAL = (
    "onnx-fp32",
    "openvino-bf16",
    "onnx-int8",
    "openvino-int8",
    "openvino-int8-dynamic",
    "torch-fp16",
    "torch-bf16",
    "onnx-fp16",
    "openvino-int8-nncf",
    "onnx-int8-dynamic",
    "torch-int8-dynamic",
    "litert-int8",
)
DRIFT = {"torch-bf16": 2e-4}  # its own rounding: 6e-5 over the probe texts, 1.1e-4 over these
ROUNDING = {
    "onnx-fp32": 1e-6,
    "openvino-bf16": 1e-4,
    "torch-fp16": 1e-5,
    "torch-bf16": 2e-4,
    "onnx-fp16": 1e-5,
    "openvino-int8-nncf": 0.06,  # its probe texts promise 0.98, these odd ones get 0.957
}

pytestmark = pytest.mark.artifacts
STREAMS = 2
Opened = tuple[Engine, Manifest, Tokenizer]


@pytest.fixture(scope="module", params=["fake-fp32", *REAL])
def opened(request: pytest.FixtureRequest) -> Opened:
    if request.param == "fake-fp32":
        folder = request.getfixturevalue("fake_artifacts") / request.param
    else:
        folder = request.getfixturevalue("real_artifacts") / request.param
        if not folder.exists():
            pytest.skip(f"{request.param} was not built: not a default, or impossible here")
    manifest = verify(folder)
    if (reason := this_cpu().lacks(manifest.runtime, manifest.precision)) is not None:
        pytest.skip(f"{request.param} {reason}")
    tokenizer = Tokenizer(folder / TOKENIZER_NAME, max_tokens=manifest.checkpoint.max_tokens)
    streams = 1 if manifest.runtime in ONE_STREAM else STREAMS
    return open_engine(folder, manifest, streams=streams), manifest, tokenizer


@pytest.fixture(scope="module")
def texts(opened: Opened) -> list[TokenIds]:
    return opened[2].encode(_golden_texts()).texts


def _golden_texts() -> list[str]:
    return json.loads((GOLDEN / "golden_texts.json").read_text(encoding="utf-8"))


def _golden_vectors() -> Vectors:
    return np.load(GOLDEN / "golden.npz")["vectors"]


def test_gives_float32_unit_vectors_of_the_promised_dims(
    opened: Opened, texts: list[TokenIds]
) -> None:
    """Each text gets one float32 vector of the manifest's dims and of unit length."""
    engine, manifest, _ = opened
    vectors = engine.embed(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(texts), manifest.checkpoint.dims)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)


def test_vectors_come_in_the_order_of_the_texts(opened: Opened, texts: list[TokenIds]) -> None:
    """Reversing the texts reverses the vectors."""
    engine = opened[0]
    there, back = engine.embed(texts), engine.embed(texts[::-1])[::-1]
    np.testing.assert_allclose(there, back, atol=1e-2)


def test_a_vector_does_not_depend_on_its_batch_mates(opened: Opened, texts: list[TokenIds]) -> None:
    """A text alone and among longer texts gets the same vector, up to 1 - cosine of 1e-4.

    A variant that breaks this must have been found out when measured, and be off the ladder.
    """
    engine, manifest, _ = opened
    if not manifest.batch_invariant:
        assert "batch-mates" in str(manifest.off_ladder)
        return
    together = engine.embed(texts)
    alone = np.concatenate([engine.embed([ids]) for ids in texts])
    assert (1 - (together * alone).sum(1)).max() <= DRIFT.get(manifest.variant, 1e-4)


def test_batches_side_by_side_get_the_vectors_of_batches_alone(
    opened: Opened, texts: list[TokenIds]
) -> None:
    """Bit for bit, from as many threads at once as the engine was opened for."""
    engine, manifest, _ = opened
    if manifest.runtime in ONE_STREAM:
        pytest.skip(f"{manifest.runtime} takes one batch at a time")
    batches = [texts[at : at + size] for size in (1, 3) for at in range(0, len(texts), size)]
    alone = [engine.embed(batch) for batch in batches]
    with ThreadPoolExecutor(STREAMS) as threads:
        for expected, found in zip(alone * 2, threads.map(engine.embed, batches * 2), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_the_first_batch_of_an_engine_with_streams_runs_alone(fake_artifacts: Path) -> None:
    """Bindings that two threads enter first may wait for each other for ever: one has been there before."""
    folder = fake_artifacts / "fake-fp32"
    for streams, sizes in ((1, []), (STREAMS, [1])):
        engine = open_engine(folder, verify(folder), streams=streams)
        assert isinstance(engine, FakeEngine)
        assert engine.batch_sizes == sizes


def test_accepts_one_token_and_the_longest_text(opened: Opened) -> None:
    """The shortest and the longest legal text work, in one batch."""
    engine, manifest, _ = opened
    shortest, longest = (np.ones(n, np.int32) for n in (1, manifest.checkpoint.max_tokens))
    assert np.isfinite(engine.embed([shortest, longest])).all()


def test_agrees_with_sentence_transformers(opened: Opened, texts: list[TokenIds]) -> None:
    """Vectors are those of sentence-transformers in FP32, as closely as the variant promises."""
    engine, manifest, _ = opened
    if manifest.runtime == "fake":
        pytest.skip("the fake engine has no weights")
    cosines = (engine.embed(texts) * _golden_vectors()).sum(1)
    floor = 1 - ROUNDING.get(manifest.variant, 1 - manifest.fidelity.min + 0.01)
    assert cosines.min() >= floor


def test_opens_no_engine_of_a_broken_file(tmp_path: Path, opened: Opened) -> None:
    """A model file that is no model is refused in one line that names the folder."""
    from serve_app.errors import ArtifactError

    _, manifest, _ = opened
    if manifest.runtime == "fake":
        pytest.skip("the fake engine reads no file")
    for name in manifest.files:
        (tmp_path / name).write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match=str(tmp_path)) as caught:
        open_engine(tmp_path, manifest)
    assert "\n" not in caught.value.message
