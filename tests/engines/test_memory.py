"""Memory on a GPU, without one: the model of activations by numbers, running out by an engine that says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from serve_app.engines.base import Device, TokenIds, Vectors, open_engine
from serve_app.engines.fake_engine import FakeEngine
from serve_app.engines.memory import (
    MEASURED_TOKENS,
    SHARE_USED,
    Activations,
    HalvingEngine,
    is_out_of_memory,
    measure_activations,
)
from serve_app.manifest import verify

MIB = 1 << 20


def test_two_measurements_give_the_line_through_them() -> None:
    """10 MiB and 2 KiB a token are found, and foretell a third batch."""
    small, large = (2048, 10 * MIB + 2048 * 2048), (8192, 10 * MIB + 8192 * 2048)
    found = Activations.fit(small, large)
    assert found.bytes_per_token == pytest.approx(2048)
    assert found.fixed_bytes == pytest.approx(10 * MIB)
    assert found.bytes_of(65536) == pytest.approx(10 * MIB + 65536 * 2048)


@pytest.mark.parametrize(
    ("small", "large"),
    [
        ((2048, 5 * MIB), (8192, 5 * MIB)),
        ((2048, 1 * MIB), (8192, 9 * MIB)),
        ((2048, 0), (8192, 0)),
    ],
    ids=["flat", "below zero at no tokens", "nothing"],
)
def test_measurements_off_a_line_never_promise_too_much(
    small: tuple[int, int], large: tuple[int, int]
) -> None:
    """Where no line with a base fits, the model is above both measurements and never free of charge."""
    found = Activations.fit(small, large)
    assert found.bytes_per_token > 0
    assert found.bytes_of(small[0]) >= small[1]
    assert found.bytes_of(large[0]) >= large[1]


def test_the_largest_batch_fits_into_what_is_free() -> None:
    """What it takes is within the share of free memory, and one token more is not."""
    activations = Activations(fixed_bytes=10 * MIB, bytes_per_token=2048)
    most = activations.most_tokens(1000 * MIB, least=512)
    assert activations.bytes_of(most) <= SHARE_USED * 1000 * MIB < activations.bytes_of(most + 1)


def test_one_text_is_always_allowed() -> None:
    """On a GPU that is full a text still goes alone, rather than nothing ever."""
    assert Activations(fixed_bytes=0, bytes_per_token=2048).most_tokens(0, least=512) == 512


@dataclass
class Meter:
    """Memory that takes 1 MiB and 100 bytes for each token that an engine saw."""

    engine: FakeEngine
    free: int = 0
    seen: list[int] = field(default_factory=list)

    def peak_bytes(self, work: Callable[[], object]) -> int:
        before = len(self.engine.batch_sizes)
        work()
        (texts,) = self.engine.batch_sizes[before:]
        self.seen.append(texts * 128)
        return MIB + 100 * self.seen[-1]

    def free_bytes(self) -> int:
        return self.free


def test_activations_are_measured_on_two_batches() -> None:
    """Two batches of whole texts are run, and their line found."""
    engine = FakeEngine(dims=4)
    meter = Meter(engine)
    found = measure_activations(engine, meter, text_tokens=128)
    assert tuple(meter.seen) == MEASURED_TOKENS
    assert found.bytes_per_token == pytest.approx(100)
    assert found.fixed_bytes == pytest.approx(MIB)


class Narrow:
    """The fake engine, out of memory above so many padded tokens."""

    def __init__(self, most_tokens: int) -> None:
        torch = pytest.importorskip("torch", reason="torch is not installed")
        self._error = torch.OutOfMemoryError
        self._fake = FakeEngine(dims=4)
        self.most_tokens = most_tokens
        self.tried: list[int] = []

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        padded = len(texts) * max(map(len, texts))
        self.tried.append(padded)
        if padded > self.most_tokens:
            raise self._error("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self._fake.embed(texts)


def _texts(count: int, length: int = 8) -> list[TokenIds]:
    return [np.full(length, i, dtype=np.int32) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 5, 16, 33])
def test_a_batch_that_does_not_fit_is_run_in_halves(count: int) -> None:
    """Vectors are those of an engine with room, in the order given; caches are given back each time."""
    inner, released = Narrow(4 * 8), []
    engine = HalvingEngine(inner, release=lambda: released.append(True))
    texts = _texts(count)
    np.testing.assert_array_equal(engine.embed(texts), FakeEngine(dims=4).embed(texts))
    failures = sum(padded > inner.most_tokens for padded in inner.tried)
    assert len(released) == failures
    assert (failures > 0) == (count > 4)


def test_the_replica_stays_and_does_not_try_twice() -> None:
    """After one failure, batches of that size are cut before they are tried."""
    inner = Narrow(4 * 8)
    engine = HalvingEngine(inner, release=lambda: None)
    texts = _texts(16)
    first = engine.embed(texts)
    inner.tried.clear()
    np.testing.assert_array_equal(engine.embed(texts), first)
    assert max(inner.tried) <= inner.most_tokens
    assert engine.most_tokens is not None


@pytest.mark.parametrize(("device", "halves"), [("cpu", False), ("cuda", True)])
def test_every_engine_on_a_gpu_survives_running_out(
    fake_artifacts: Path, device: Device, *, halves: bool
) -> None:
    """What `open_engine` gives for a GPU halves its batches, and for a CPU is the engine itself."""
    folder = fake_artifacts / "fake-fp32"
    engine = open_engine(folder, verify(folder), device=device)
    assert isinstance(engine, HalvingEngine) is halves
    assert engine.embed(_texts(3)).shape == (3, 8)


def test_a_text_that_does_not_fit_alone_fails_and_the_next_does_not() -> None:
    """One text beyond all memory is the caller's error; the engine serves on."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    engine = HalvingEngine(Narrow(8), release=lambda: None)
    with pytest.raises(torch.OutOfMemoryError):
        engine.embed(_texts(1, length=9))
    assert engine.embed(_texts(1)).shape == (1, 4)


def test_other_errors_are_not_halved() -> None:
    """What is no lack of memory goes to the caller at once."""

    class Broken:
        def embed(self, _: Sequence[TokenIds]) -> Vectors:
            raise RuntimeError("device-side assert triggered")

    engine = HalvingEngine(Broken(), release=lambda: pytest.fail("nothing to give back"))
    with pytest.raises(RuntimeError, match="assert"):
        engine.embed(_texts(4))


@pytest.mark.parametrize(
    ("message", "is_one"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 MiB.", True),
        ("Non-zero status code: Failed to allocate memory for requested buffer of size 42", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_runtimes_have_their_words_for_it(message: str, *, is_one: bool) -> None:
    """PyTorch's and ONNX Runtime's messages are known, and others are not taken for them."""
    assert is_out_of_memory(RuntimeError(message)) is is_one
