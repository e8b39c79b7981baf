"""The packed path against the padded one, in FP32 on the CPU: same weights, same vectors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from serve_app.engines import torch_engine  # noqa: E402 - they need what is skipped for
from serve_app.engines.base import TokenIds, Vectors  # noqa: E402
from serve_app.engines.packed import opening  # noqa: E402
from serve_app.engines.packed.attention import flash, is_right, text_by_text  # noqa: E402
from serve_app.engines.packed.encoder import PackedEncoder, why_not  # noqa: E402
from serve_app.engines.packed.engine import PackedEngine, Tuning  # noqa: E402
from serve_app.engines.packed.graphs import Graphs, capture_all  # noqa: E402
from serve_app.engines.packed.layout import Room, fill  # noqa: E402
from serve_app.engines.packed.pooling import (  # noqa: E402
    PackedEmbedder,
    index_sums,
    pool_segments,
    reduced_sums,
)
from serve_app.engines.pooling import make_head, pool  # noqa: E402
from serve_app.engines.tokenization import Tokenizer  # noqa: E402
from serve_app.engines.torch_engine import TorchEngine, load_transformer  # noqa: E402
from serve_app.manifest import TOKENIZER_NAME, Pooling, Variant, verify  # noqa: E402
from serve_app.manifest import Tokenizer as ModelTokenizer  # noqa: E402

pytestmark = pytest.mark.model

GOLDEN = Path(__file__).parents[2] / "golden"
CPU = torch.device("cpu")
HERE = opening.Target(device=CPU, attention=text_by_text)
KINDS = ("Bert", "Roberta", "XLMRoberta", "Camembert")
MAX_TOKENS = 40


def _packed(model: Any, facts: Any, **tuning: Any) -> PackedEngine:
    return opening.pack(
        model,
        facts,
        head=torch.nn.Sequential(),
        target=replace(HERE, tuning=Tuning(**tuning)),
    )


def _padded(model: Any, pooling: Pooling = "mean") -> TorchEngine:
    pad_id = model.config.pad_token_id
    return TorchEngine(model, pooling=pooling, pad_id=pad_id, device="cpu")


def _facts(make_facts: Any, pooling: Pooling = "mean") -> Any:
    return make_facts(dims=32, max_tokens=MAX_TOKENS, pooling=pooling)


@pytest.fixture
def engines(make_model: Any, make_facts: Any) -> tuple[TorchEngine, PackedEngine]:
    """Padded and packed, of equal weights."""
    return _padded(make_model()), _packed(make_model(), _facts(make_facts))


@pytest.mark.parametrize("kind", KINDS)
def test_packed_vectors_are_the_padded_ones(
    kind: str, make_model: Any, make_facts: Any, mixed_texts: list[TokenIds]
) -> None:
    """Each architecture's packed vectors are those of its own modules with padding, in the order given."""
    padded = _padded(make_model(kind)).embed(mixed_texts)
    packed = _packed(make_model(kind), _facts(make_facts)).embed(mixed_texts)
    assert packed.dtype == np.float32
    np.testing.assert_allclose(packed, padded, atol=2e-6)


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_every_pooling_is_the_padded_one(
    pooling: Pooling, make_model: Any, make_facts: Any, mixed_texts: list[TokenIds]
) -> None:
    """Pooled by segment or under a mask, a text's vector is the same."""
    padded = _padded(make_model(), pooling).embed(mixed_texts)
    packed = _packed(make_model(), _facts(make_facts, pooling)).embed(mixed_texts)
    np.testing.assert_allclose(packed, padded, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_close_to_fp32(
    dtype: str, make_model: Any, make_facts: Any, mixed_texts: list[TokenIds]
) -> None:
    """Both paths in half precision stay within 1e-3 of FP32 by cosine; FP16 by component too."""
    exact = _padded(make_model()).embed(mixed_texts)
    half = getattr(torch, dtype)
    packed = _packed(make_model().to(half), _facts(make_facts)).embed(mixed_texts)
    padded = _padded(make_model().to(half)).embed(mixed_texts)
    for found in (packed, padded):
        assert (1 - (found * exact).sum(1)).max() <= 1e-3
    if dtype == "float16":
        np.testing.assert_allclose(packed, exact, atol=1e-3)
        np.testing.assert_allclose(packed, padded, atol=1e-3)


def test_a_vector_does_not_depend_on_its_neighbours(
    engines: tuple[TorchEngine, PackedEngine], mixed_texts: list[TokenIds]
) -> None:
    """Alone, among others, or in a call that is cut into many batches: one vector."""
    packed = engines[1]
    together = packed.embed(mixed_texts)
    alone = np.concatenate([packed.embed([text]) for text in mixed_texts])
    packed.most_tokens = 20
    cut = packed.embed(mixed_texts)
    np.testing.assert_allclose(alone, together, atol=2e-6)
    np.testing.assert_allclose(cut, together, atol=2e-6)


def test_a_second_call_may_start_before_the_first_is_fetched(
    engines: tuple[TorchEngine, PackedEngine], mixed_texts: list[TokenIds]
) -> None:
    """Two calls under way at once get each their own vectors."""
    packed = engines[1]
    first, second = packed.start(mixed_texts[:4]), packed.start(mixed_texts[4:])
    np.testing.assert_allclose(
        np.concatenate([first.vectors(), second.vectors()]), packed.embed(mixed_texts), atol=2e-6
    )


def test_a_head_follows_the_pooling(
    make_model: Any, make_facts: Any, mixed_texts: list[TokenIds]
) -> None:
    """A dense layer with an activation is applied to packed vectors as to padded ones."""
    draw = torch.Generator().manual_seed(1)
    weights = {"0.weight": torch.randn(8, 32, generator=draw)}
    heads = [make_head(("dense", "tanh"), dims=8, weights=weights) for _ in range(2)]
    padded = TorchEngine(make_model(), pooling="mean", pad_id=0, device="cpu", head=heads[0])
    packed = opening.pack(make_model(), _facts(make_facts), head=heads[1], target=HERE)
    np.testing.assert_allclose(packed.embed(mixed_texts), padded.embed(mixed_texts), atol=2e-6)


def test_what_a_compiler_makes_runs_in_place_of_the_plain_module(
    make_model: Any, make_facts: Any, mixed_texts: list[TokenIds]
) -> None:
    """Batches go through the compiled form, whose bound of the lengths takes few values."""
    bounds = []

    def compile_(embedder: Any) -> Any:
        def forward(*parts: Any) -> Any:
            bounds.append(parts[-1])
            return embedder(*parts)

        return forward

    packed = _packed(make_model(), _facts(make_facts), compile=compile_)
    found = np.concatenate([packed.embed([text]) for text in mixed_texts])
    assert set(bounds) <= {1, 2, 4, 8, 16, 32, 64}
    np.testing.assert_allclose(found, _padded(make_model()).embed(mixed_texts), atol=2e-6)


def test_small_batches_replay_a_captured_bucket(
    make_model: Any, make_facts: Any, mixed_texts: list[TokenIds]
) -> None:
    """With capturing, batches that a bucket holds run in it, larger ones do not, and vectors stay."""
    replays = []

    def capture(work: Any) -> Any:
        static = work()

        def replay() -> Any:
            replays.append(static.shape[0])
            static.copy_(work())
            return static

        return replay

    packed = _packed(make_model(), _facts(make_facts), capture=capture)
    replays.clear()
    expected = _padded(make_model()).embed(mixed_texts)
    np.testing.assert_allclose(packed.embed(mixed_texts), expected, atol=2e-6)
    assert replays == [8]
    alone = np.concatenate([packed.embed([text]) for text in mixed_texts])
    np.testing.assert_allclose(alone, expected, atol=2e-6)
    assert replays == [8, *[1] * len(mixed_texts)]
    packed.embed(mixed_texts * 2)
    assert len(replays) == 1 + len(mixed_texts)
    packed.most_tokens = 50
    np.testing.assert_allclose(packed.embed(mixed_texts), expected, atol=2e-6)


def test_a_graph_that_goes_wrong_is_not_used() -> None:
    """A bucket whose replay differs from the plain run is left out; one that cannot be captured ends it."""
    rooms = [Room(16, 1), Room(32, 1)]

    def run(row: Any, room: Room, longest: int) -> Any:
        del longest
        offsets = row[room.parts[3]].float()
        return torch.stack([offsets.diff()] * 3, dim=1)

    def capture(work: Any) -> Any:
        wrong = len(work()) and 0.5
        captured.append(work)
        return lambda: work() + (wrong if len(captured) == 1 else 0.0)

    captured: list[Any] = []
    graphs = capture_all(run, device=CPU, capture=capture, max_tokens=64, buckets=rooms[1:])
    assert graphs.rooms == []
    assert (
        capture_all(run, device=CPU, capture=lambda w: w, max_tokens=64, buckets=rooms).rooms
        == rooms
    )

    def refuse(_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    assert capture_all(run, device=CPU, capture=refuse, max_tokens=64, buckets=rooms).rooms == []


@pytest.mark.parametrize(
    ("tokens", "texts", "bucket"),
    [
        (1, 1, Room(16, 1)),
        (16, 1, Room(16, 1)),
        (17, 1, Room(32, 1)),
        (17, 2, Room(64, 8)),
        (64, 8, Room(64, 8)),
        (65, 1, None),
        (9, 9, None),
    ],
)
def test_a_batch_runs_in_the_smallest_bucket_that_holds_it(
    tokens: int, texts: int, bucket: Room | None
) -> None:
    """Tokens and texts must both fit; beyond the largest there is none."""
    rooms = [Room(64, 8), Room(16, 1), Room(32, 1)]

    def run(row: Any, room: Room, longest: int) -> Any:
        del row, longest
        return torch.zeros(room.texts, 2)

    graphs = capture_all(run, device=CPU, capture=lambda w: w, max_tokens=64, buckets=rooms)
    found = graphs.find(Room(tokens, texts))
    assert (found and found.room) == bucket
    assert Graphs().find(Room(1, 1)) is None


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_loud_tokens_of_no_text_do_not_matter(pooling: Pooling) -> None:
    """Whatever states the room to spare has, not-a-number too, a text's vector is finite and its own."""
    texts = [np.ones(n, dtype=np.int32) for n in (2, 3)]
    room = Room(9, 4)
    row = np.empty(room.numbers, dtype=np.int32)
    fill(row, texts, room, first_position=0)
    _, _, segments, offsets = (torch.from_numpy(row[part]) for part in room.parts)
    states = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    states[5:] = float("nan")
    for sums in (index_sums, reduced_sums):
        found = pool_segments(states, segments, offsets, pooling, sums=sums)[:2]
        for number, part in enumerate((states[:2], states[2:5])):
            mask = torch.ones(1, len(part), dtype=torch.int64)
            torch.testing.assert_close(found[number], pool(part[None], mask, pooling)[0])


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_sums_over_long_texts_do_not_overflow(pooling: Pooling) -> None:
    """The sum over 2000 loud tokens is beyond FP16, and still comes out finite."""
    states = torch.full((2000, 2), 1000.0, dtype=torch.float16)
    segments = torch.zeros(2000, dtype=torch.int32)
    offsets = torch.tensor([0, 2000], dtype=torch.int32)
    found = pool_segments(states, segments, offsets, pooling)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()


def test_other_architectures_are_left_to_the_padded_engine(make_model: Any) -> None:
    """MPNet's relative positions, a decoder, mixed precision and hooks are refused with a reason."""
    assert why_not(make_model()) is None
    assert "mpnet" in str(why_not(make_model("MPNet")))
    assert "decoder" in str(why_not(make_model(is_decoder=True)))
    mixed = make_model()
    mixed.encoder.layer[0].half()
    assert "precision" in str(why_not(mixed))
    hooked = make_model()
    hooked.encoder.layer[0].register_forward_hook(lambda *_: None)
    assert "hooks" in str(why_not(hooked))


class Meter:
    """Memory of which 1000 bytes a token are used, in multiples of a batch of 40-token texts."""

    def __init__(self, engine_tokens: list[int]) -> None:
        self._tokens = iter(engine_tokens)

    def peak_bytes(self, work: Any) -> int:
        work()
        return 1000 * next(self._tokens)

    def free_bytes(self) -> int:
        return 12_500_000


def test_where_the_attention_is_right_a_model_is_packed_within_memory(
    make_model: Any, make_facts: Any, mixed_texts: list[TokenIds]
) -> None:
    """Opening ends with an engine whose batches take at most the share of memory that is free."""
    head = torch.nn.Sequential()
    engine = opening.packed_if_possible(
        make_model(), _facts(make_facts), head=head, target=HERE, meter=Meter([2040, 8160])
    )
    assert engine is not None
    assert engine.most_tokens == 10_000
    expected = _padded(make_model()).embed(mixed_texts)
    np.testing.assert_allclose(engine.embed(mixed_texts), expected, atol=2e-6)


def _leaky(q: Any, k: Any, v: Any, offsets: Any, longest: int) -> Any:
    """Attention over all texts as if they were one."""
    del offsets
    return text_by_text(q, k, v, torch.tensor([0, len(q)]), longest)


@pytest.mark.parametrize("attention", [flash, _leaky], ids=["no kernel here", "wrong"])
def test_without_a_right_attention_texts_are_padded(
    attention: Any, make_model: Any, make_facts: Any
) -> None:
    """An attention that does not run, or mixes texts, makes no engine."""
    model, head = make_model().half(), torch.nn.Sequential()
    target = replace(HERE, attention=attention)
    assert (
        opening.packed_if_possible(
            model, _facts(make_facts), head=head, target=target, meter=Meter([])
        )
        is None
    )
    assert not is_right(attention, CPU, torch.float16, heads=4, head_dims=8)
    assert is_right(text_by_text, CPU, torch.float16, heads=4, head_dims=8)


@pytest.mark.parametrize(
    ("changes", "target", "way"),
    [
        ({}, HERE, "packed"),
        ({}, replace(HERE, attention=_leaky), "padded"),
        ({"autocast": True}, HERE, "padded"),
        ({"kept_fp32": ("encoder.layer.0",)}, HERE, "padded"),
    ],
    ids=["right", "wrong attention", "autocast", "mixed"],
)
def test_on_a_gpu_a_model_in_one_precision_is_packed(  # noqa: PLR0913, PLR0917 - fixtures
    changes: dict[str, Any],
    target: opening.Target,
    way: str,
    make_model: Any,
    make_facts: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`open_engine` packs where it can, with the CPU in the GPU's place here, and pads all else."""
    make_model().half().save_pretrained(tmp_path)
    variant = Variant(
        variant="torch-fp16",
        runtime="torch",
        precision="fp16",
        checkpoint=_facts(make_facts),
        tokenizer=ModelTokenizer(digest="0" * 64, pad_id=0, vocab_size=100),
        **changes,
    )
    padded: list[str] = []
    monkeypatch.setattr(opening, "on_gpu", lambda: target)
    monkeypatch.setattr(torch_engine, "CudaMeter", lambda: Meter([2040, 8160]))
    monkeypatch.setattr(
        torch_engine, "open_padded", lambda *_, device: padded.append(device) or "padded"
    )
    found = torch_engine.open_engine(tmp_path, variant, 1, "cuda")
    assert isinstance(found, PackedEngine) is (way == "packed")
    assert padded == ([] if way == "packed" else ["cuda"])


def test_the_flash_kernel_takes_what_the_layers_give_it(make_model: Any) -> None:
    """PyTorch's own declaration of the kernel accepts our arguments, and vectors have the right shape.

    Without a GPU this is as far as the kernel itself can be tried: on tensors that have no data.
    """
    pytest.importorskip("torch.nn.attention.varlen", reason="this PyTorch has no such kernel")
    encoder = PackedEncoder(make_model().half(), attention=flash)
    embedder = PackedEmbedder(encoder, pooling="mean").to("meta")
    tokens = torch.zeros(20, dtype=torch.int32, device="meta")
    offsets = torch.zeros(4, dtype=torch.int32, device="meta")
    vectors = embedder(tokens, tokens, tokens, offsets, 9)
    assert (vectors.shape, vectors.dtype) == ((3, 32), torch.float32)


def test_an_engine_that_fails_its_first_runs_is_given_up(make_model: Any, make_facts: Any) -> None:
    """What only a real batch shows, as a kernel that a card lacks, leaves the padded engine."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("no kernel image is available for execution on the device")

    found = opening.packed_if_possible(
        make_model(),
        _facts(make_facts),
        head=torch.nn.Sequential(),
        target=replace(HERE, sums=broken),
        meter=Meter([2040, 8160]),
    )
    assert found is None


def test_the_real_checkpoint_packed_agrees_with_sentence_transformers(
    real_artifacts: Path,
) -> None:
    """all-MiniLM-L6-v2 through the packed path gives the golden vectors within 1e-3, in FP32 and FP16."""
    from converters.checkpoint import DEFAULT_CHECKPOINT, open_checkpoint

    checkpoint = open_checkpoint(DEFAULT_CHECKPOINT)
    verify(real_artifacts / "onnx-fp32")
    tokenizer = Tokenizer(
        real_artifacts / "onnx-fp32" / TOKENIZER_NAME, max_tokens=checkpoint.facts.max_tokens
    )
    golden: Vectors = np.load(GOLDEN / "golden.npz")["vectors"]
    texts = tokenizer.encode(
        json.loads((GOLDEN / "golden_texts.json").read_text(encoding="utf-8"))
    ).texts
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 1e-3)):
        packed = _packed(load_transformer(checkpoint.folder, dtype=dtype), checkpoint.facts)
        np.testing.assert_allclose(packed.embed(texts), golden, atol=tolerance)
