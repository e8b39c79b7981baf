"""Which models are packed, and when texts are padded instead: architecture, precision, kernel, memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from serve_app.engines import torch_engine  # noqa: E402 - they need what is skipped for
from serve_app.engines.base import TokenIds  # noqa: E402
from serve_app.engines.packed import opening  # noqa: E402
from serve_app.engines.packed.attention import flash, is_right, text_by_text  # noqa: E402
from serve_app.engines.packed.encoder import PackedEncoder, why_not  # noqa: E402
from serve_app.engines.packed.engine import PackedEngine  # noqa: E402
from serve_app.engines.packed.graphs import Capturing  # noqa: E402
from serve_app.engines.packed.layout import Room  # noqa: E402
from serve_app.engines.packed.pooling import PackedEmbedder  # noqa: E402
from serve_app.manifest import Tokenizer as ModelTokenizer  # noqa: E402
from serve_app.manifest import Variant  # noqa: E402
from tests.engines.packed.twins import CPU, HERE, padded_engine, tiny_facts  # noqa: E402

pytestmark = pytest.mark.model


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
        make_model(), tiny_facts(make_facts), head=head, target=HERE, meter=Meter([2040, 8160])
    )
    assert engine is not None
    assert engine.most_tokens == 10_000
    expected = padded_engine(make_model()).embed(mixed_texts)
    np.testing.assert_allclose(engine.embed(mixed_texts), expected, atol=2e-6)


def test_memory_is_measured_before_graphs_are_captured(make_model: Any, make_facts: Any) -> None:
    """A replay allocates nothing: measured after capturing, batches of any size would seem to fit."""
    happened = []

    class Watched(Meter):
        def peak_bytes(self, work: Any) -> int:
            happened.append("measured")
            return super().peak_bytes(work)

        def free_bytes(self) -> int:
            happened.append("free memory")
            return super().free_bytes()

    def capture(work: Any) -> Any:
        happened.append("captured")
        return work

    graphs = Capturing(capture=capture, families=[[Room(16, 1)]])
    engine = opening.packed_if_possible(
        make_model(),
        tiny_facts(make_facts),
        head=torch.nn.Sequential(),
        target=replace(HERE, tuning=opening.Tuning(graphs=graphs)),
        meter=Watched([2040, 8160]),
    )
    assert engine is not None
    assert engine.graphs == [Room(16, 1)]
    assert happened == ["measured", "measured", "captured", "free memory"]


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
            model, tiny_facts(make_facts), head=head, target=target, meter=Meter([])
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
        checkpoint=tiny_facts(make_facts),
        tokenizer=ModelTokenizer(digest="0" * 64, pad_id=0, vocab_size=100),
        **changes,
    )
    padded: list[str] = []
    monkeypatch.setattr(opening, "on_gpu", lambda: target)
    monkeypatch.setattr(torch_engine, "CudaMeter", lambda: Meter([2040, 8160]))
    monkeypatch.setattr(
        torch_engine, "open_padded", lambda *_, device: padded.append(device) or "padded"
    )
    found = torch_engine.open_engine(tmp_path, variant, 1, "cuda", 1)
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

    def broken(_: Any) -> Any:
        def run(*_: Any) -> Any:
            raise RuntimeError("no kernel image is available for execution on the device")

        return run

    found = opening.packed_if_possible(
        make_model(),
        tiny_facts(make_facts),
        head=torch.nn.Sequential(),
        target=replace(HERE, tuning=opening.Tuning(compile=broken)),
        meter=Meter([2040, 8160]),
    )
    assert found is None
