"""Profiles: the line that is fitted, and what a replica can measure in a few seconds."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from serve_app.engines.fake_engine import FakeEngine
from serve_app.engines.measure import (
    GPU_CELLS,
    QUICK_CELLS,
    UNKNOWN_GPU,
    Setup,
    cells_within,
    fit,
    hardware_name,
    quick_profile,
    resident_bytes,
)
from tests.engines.clocked import Clocked

SETUP = Setup(hardware="a test", device="cpu", threads=1, load_ms=12.0, resident_bytes=34)


def test_a_quick_profile_finds_the_engines_line() -> None:
    """Base, pace and best batch are those of the engine; its first runs of a shape do not count."""
    engine = Clocked(base_ms=2.0, per_token_ms=0.05, first_ms=40.0)
    found = quick_profile(engine, SETUP, max_tokens=256, now_s=engine.now_s)
    assert found.base_ms == pytest.approx(2.0)
    assert found.per_token_ms == pytest.approx(0.05)
    assert found.spread == pytest.approx(1.0)
    assert found.batch_tokens == 1024
    assert max(map(abs, found.residuals)) < 1e-6
    assert len(found.grid) == len(QUICK_CELLS)
    assert (found.load_ms, found.resident_bytes) == (12.0, 34)


def test_a_gpu_is_measured_on_batches_that_fill_it() -> None:
    """Tens of thousands of tokens are tried, and the batch is the smallest that is as good as any."""
    setup = replace(SETUP, device="cuda")
    engine = Clocked(base_ms=0.5, per_token_ms=0.0002)
    found = quick_profile(engine, setup, max_tokens=256, now_s=engine.now_s)
    assert len(found.grid) == len(GPU_CELLS)
    assert max(cell.texts * cell.tokens for cell in found.grid) == 65536
    # Of a token's time the base is 6.8 % with 36864 tokens, and 3.8 % with 65536: within 3 %.
    assert found.batch_tokens == 32768
    slower = Clocked(base_ms=0.5, per_token_ms=0.01)
    assert quick_profile(slower, setup, max_tokens=256, now_s=slower.now_s).batch_tokens == 2048


def test_a_slow_gpu_keeps_the_budget() -> None:
    """Batches that would not fit into the budget are left out, as on a CPU."""
    engine = Clocked(base_ms=1.0, per_token_ms=0.1)
    found = quick_profile(engine, replace(SETUP, device="cuda"), max_tokens=256, now_s=engine.now_s)
    assert engine.now_s() <= 3.0
    assert found.per_token_ms == pytest.approx(0.1)


@pytest.mark.parametrize("per_token_ms", [0.01, 0.1, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("budget_s", [1.0, 3.0])
def test_a_quick_profile_keeps_its_budget(per_token_ms: float, budget_s: float) -> None:
    """A slow engine is measured on fewer batches, never for longer, and its pace still comes out."""
    engine = Clocked(base_ms=1.0, per_token_ms=per_token_ms, first_ms=1.0)
    found = quick_profile(engine, SETUP, max_tokens=256, budget_s=budget_s, now_s=engine.now_s)
    assert engine.now_s() <= budget_s
    assert found.per_token_ms == pytest.approx(per_token_ms)


def test_a_hopeless_engine_is_still_measured_on_two_batches() -> None:
    """An engine too slow for the budget gets a line all the same: a replica needs one."""
    engine = Clocked(base_ms=0.0, per_token_ms=500.0)
    found = quick_profile(engine, SETUP, max_tokens=256, now_s=engine.now_s)
    assert len(found.grid) == 2
    assert found.per_token_ms == pytest.approx(500.0)


def test_a_real_clock_is_the_default() -> None:
    """Without a clock of the test's, times are real: above nothing, and within the budget."""
    found = quick_profile(FakeEngine(dims=4), SETUP, max_tokens=16, budget_s=0.2)
    assert found.per_token_ms > 0
    assert all(cell.median_ms > 0 for cell in found.grid)
    assert {cell.tokens for cell in found.grid} <= set(range(17))


@pytest.mark.parametrize("max_tokens", [1, 7, 16, 512])
def test_texts_over_the_limit_are_not_measured(max_tokens: int) -> None:
    """At least two batches, none with a text that the checkpoint refuses."""
    cells = cells_within(max_tokens, QUICK_CELLS)
    assert len(cells) >= 2
    assert all(tokens <= max_tokens for _, tokens in cells)


def test_noise_never_makes_time_run_backwards() -> None:
    """Where a line through the medians would start below zero, it starts at zero."""
    cells = [(1, 10), (1, 20), (1, 40)]
    found = fit(cells, np.array([[1.0, 3.0, 8.0]]), setup=SETUP)
    assert found.base_ms == 0.0
    assert 0.1 < found.per_token_ms < 0.2


def test_a_profile_of_other_hardware_does_not_fit() -> None:
    """Hardware, device and threads decide whether a profile still says something."""
    profile = quick_profile(FakeEngine(dims=4), SETUP, max_tokens=16, budget_s=0.05)
    other = Setup(hardware="other", device="cpu", threads=1, load_ms=0.0, resident_bytes=0)
    two = Setup(hardware="a test", device="cpu", threads=2, load_ms=0.0, resident_bytes=0)
    assert SETUP.fits(profile)
    assert not other.fits(profile)
    assert not two.fits(profile)


def test_this_machine_has_a_name_and_memory() -> None:
    """The fingerprint names the cores; this process holds more than its interpreter needs."""
    assert "cores" in hardware_name("cpu")
    assert resident_bytes() > 10_000_000


def test_a_gpu_that_pytorch_does_not_know_has_a_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime with its own way to a GPU starts where PyTorch is not installed."""
    monkeypatch.setitem(sys.modules, "torch", None)
    assert hardware_name("cuda") == UNKNOWN_GPU
