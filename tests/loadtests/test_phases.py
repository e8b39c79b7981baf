"""The matrix: what is run, at which share of the knee, and when another ramp is needed."""

from dataclasses import replace
from pathlib import Path

import pytest

from loadtests.arrivals import arrivals
from loadtests.knee import Knee
from loadtests.phases import PROFILES, after_the_ramp, first_ramp, next_ramp, warm_up

KNEE = Knee(
    load_per_s=100.0,
    reached=True,
    below_ramp=False,
    highest_offered_per_s=180.0,
    highest_achieved_per_s=110.0,
)


@pytest.mark.parametrize("name", PROFILES)
def test_every_phase_is_a_schedule_of_its_length(name: str) -> None:
    """The arrivals of all phases are understood, and none sends beyond its duration."""
    profile = PROFILES[name]
    after = after_the_ramp(profile, knee_per_s=40.0, variants=["a", "b"], trace=None)
    for phase in (warm_up(profile), first_ramp(profile, to_per_s=90.0), *after):
        offsets = arrivals(phase.arrivals, seed=1)
        assert len(offsets) > 0
        assert offsets[-1] <= phase.duration_s


def test_routed_and_pinned_meet_the_same_load() -> None:
    """At 70 % and at all of the knee, routed and each variant get the same arrivals."""
    phases = list(
        after_the_ramp(PROFILES["quick"], knee_per_s=100.0, variants=["a", "b"], trace=Path("t"))
    )
    assert [p.name for p in phases[:3]] == ["routed-70", "pinned-a-70", "pinned-b-70"]
    assert [p.pin for p in phases[:3]] == [None, "a", "b"]
    assert {p.arrivals for p in phases[:3]} == {"constant:rate=70.0,duration=14"}
    assert {p.arrivals for p in phases[3:6]} == {"constant:rate=100.0,duration=8"}
    assert [p.name for p in phases[6:]] == ["spike", "trace"]


def test_the_main_phase_is_one_that_runs() -> None:
    """Objectives without a phase speak of a phase of the profile."""
    for profile in PROFILES.values():
        names = [
            p.name for p in after_the_ramp(profile, knee_per_s=40.0, variants=["a"], trace=None)
        ]
        assert profile.main_phase in names


def test_a_ramp_is_repeated_higher_or_finer_until_it_fits() -> None:
    """A knee in the middle needs no more; one above the ramp a higher, one at its foot a finer ramp."""
    profile = PROFILES["quick"]
    assert next_ramp(profile, KNEE, attempt=2) is None
    assert (
        next_ramp(profile, replace(KNEE, load_per_s=1, highest_offered_per_s=140), attempt=2)
        is None
    )
    higher = next_ramp(profile, replace(KNEE, reached=False), attempt=2)
    finer = next_ramp(profile, replace(KNEE, load_per_s=20.0, highest_offered_per_s=500), attempt=2)
    assert higher is not None
    assert finer is not None
    assert (
        next_ramp(profile, replace(KNEE, load_per_s=20, highest_offered_per_s=500), attempt=3)
        is None
    )
    assert higher.arrivals == "ramp:rate=126.0..540.0,duration=40"
    assert finer.arrivals == "ramp:rate=5.0..143.0,duration=40"
    assert next_ramp(profile, replace(KNEE, reached=False), attempt=9) is None
