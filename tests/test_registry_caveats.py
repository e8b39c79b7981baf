"""A ladder that was measured on another machine says so, and how to measure it here."""

from pathlib import Path

import pytest

from serve_app import registry
from serve_app.registry import load_ladder
from tests.rungs import change

HERE = "this machine"


@pytest.fixture
def measured_here(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All three profiles are of the machine that plans."""
    monkeypatch.setattr(registry, "hardware_name", lambda device: {"cpu": HERE}[device])
    for name in ("fake-fp32", "fake-bf16", "fake-int8"):
        change(artifacts / name, profile={"hardware": HERE})
    return artifacts


def test_a_ladder_measured_here_has_no_caveat(measured_here: Path) -> None:
    """The usual case has nothing to say."""
    assert load_ladder(measured_here).caveat is None


def test_a_ladder_measured_elsewhere_says_so_in_one_line(measured_here: Path) -> None:
    """Which variants, on what, where this is, and the exact command that measures again."""
    change(measured_here / "fake-int8", profile={"hardware": "machine A"})
    change(measured_here / "fake-bf16", profile={"hardware": "machine B"})
    caveat = load_ladder(measured_here).caveat
    assert caveat is not None
    assert "\n" not in caveat
    assert "fake-bf16 on 'machine B'" in caveat
    assert "fake-int8 on 'machine A'" in caveat
    assert f"here is '{HERE}'" in caveat
    assert "fake-fp32" not in caveat
    assert f"`python -m converters measure --out {measured_here}`" in caveat


def test_a_gpus_profile_is_no_caveat(measured_here: Path) -> None:
    """Who plans may be a node without a GPU, and can say nothing of one."""
    change(measured_here / "fake-int8", profile={"hardware": "a GPU", "device": "cuda"})
    assert load_ladder(measured_here).caveat is None


def test_a_variant_that_is_off_for_other_reasons_is_no_caveat(measured_here: Path) -> None:
    """Its cost decided nothing; one that was dominated did compete."""
    change(measured_here / "fake-int8", profile={"hardware": "machine A"}, off_ladder="a gate")
    assert load_ladder(measured_here).caveat is None
    change(measured_here / "fake-bf16", profile={"hardware": "machine B", "per_token_ms": 9.0})
    assert "fake-bf16" in str(load_ladder(measured_here).caveat)


def test_named_variants_need_no_caveat(measured_here: Path) -> None:
    """Nothing was chosen by cost."""
    change(measured_here / "fake-int8", profile={"hardware": "machine A"})
    assert load_ladder(measured_here, named=("fake-int8",)).caveat is None
