"""The matrix of phases that a run goes through: which load, how long, routed or pinned.

The ramp finds the knee; everything after it is a share of the knee's load. Phases that are compared have
the same arrivals and texts (one seed), so nothing but the choice of variant differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.knee import Knee

SOAK = "soak"
WARM_PER_S = 5.0
RAMP_FROM_PER_S = 5.0
SETTLED = 0.7  # of the knee's load: the load at which promises are judged
FULL = 1.0
SOAKED = 0.5
SECOND, MOST_RAMPS = 2, 3
HIGHER = 3.0  # how far above its start the next ramp goes when one did not find the knee
STEEP = 0.4  # a knee below this share of a ramp's top was passed in few seconds
FINER = 1.3  # how far above the most that was answered the next ramp goes
TRACE_FILE = Path(__file__).parents[2] / "shared" / "data" / "arrivals_conv.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One load."""

    name: str
    arrivals: str  # as `--arrivals` of the locustfile takes it
    duration_s: float
    pin: str | None = None  # every request asks for this variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How long each phase takes, in seconds; 0 leaves it out."""

    warm_s: float
    ramp_s: float
    settled_s: float = 0  # routed and pinned, at 70 % of the knee
    full_s: float = 0  # the same at the knee
    spike_s: float = 0
    step_s: float = 0
    sinus_s: float = 0
    trace_s: float = 0
    soak_s: float = 0  # at half of the knee

    @property
    def main_phase(self) -> str:
        """The phase that objectives are about unless they name one."""
        return SOAK if self.soak_s else phase_name(None, SETTLED)


PROFILES = {
    "quick": Profile(warm_s=5, ramp_s=40, settled_s=14, full_s=8, spike_s=12, trace_s=15),
    "full": Profile(
        warm_s=10,
        ramp_s=120,
        settled_s=40,
        full_s=20,
        spike_s=30,
        step_s=60,
        sinus_s=60,
        trace_s=60,
    ),
    "soak": Profile(warm_s=5, ramp_s=30, soak_s=600),
}


def warm_up(profile: Profile) -> Phase:
    """A few requests, so that first-time costs are not measured."""
    return _spec("warm-up", f"constant:rate={WARM_PER_S:g}", profile.warm_s)


def first_ramp(profile: Profile, *, to_per_s: float) -> Phase:
    """From a little to more than the server should take."""
    return _ramp("ramp", RAMP_FROM_PER_S, max(to_per_s, 4 * RAMP_FROM_PER_S), profile.ramp_s)


def next_ramp(profile: Profile, knee: Knee, *, attempt: int) -> Phase | None:
    """Higher when the last one ended below the knee, finer when it ran past it too steeply; or none."""
    if attempt > MOST_RAMPS:
        return None
    name = f"ramp-{attempt}"
    if not knee.reached:
        top = knee.highest_offered_per_s
        return _ramp(name, 0.7 * top, HIGHER * top, profile.ramp_s)
    # A steep ramp tells how much is answered at most better than when it became too much. Once is enough.
    top = max(FINER * max(knee.load_per_s, knee.highest_achieved_per_s), 2 * WARM_PER_S)
    if (
        attempt == SECOND
        and knee.load_per_s < STEEP * knee.highest_offered_per_s
        and (top < knee.highest_offered_per_s)
    ):
        return _ramp(name, min(RAMP_FROM_PER_S, top / 4), top, profile.ramp_s)
    return None


def after_the_ramp(
    profile: Profile, *, knee_per_s: float, variants: Sequence[str], trace: Path | None
) -> Iterator[Phase]:
    """All that is scaled to the knee."""
    for share, seconds in ((SETTLED, profile.settled_s), (FULL, profile.full_s)):
        for pin in (None, *variants) if seconds else ():
            yield _constant(phase_name(pin, share), share * knee_per_s, seconds, pin=pin)
    rate = SETTLED * knee_per_s
    if profile.spike_s:
        yield _spec("spike", f"spike:rate={rate / 2:.1f}..{1.5 * knee_per_s:.1f}", profile.spike_s)
    if profile.step_s:
        yield _spec("step", f"step:rate={rate / 4:.1f}..{rate:.1f},steps=4", profile.step_s)
    if profile.sinus_s:
        yield _spec("sinus", f"sinus:rate={rate / 4:.1f}..{rate:.1f}", profile.sinus_s)
    if profile.trace_s:
        kind = f"trace:file={trace}," if trace else "bursty:"
        name = "trace" if trace else "bursty"
        yield _spec(name, f"{kind}rate={knee_per_s / 2:.1f}", profile.trace_s)
    if profile.soak_s:
        yield _constant(SOAK, SOAKED * knee_per_s, profile.soak_s)


def _constant(name: str, per_s: float, seconds: float, *, pin: str | None = None) -> Phase:
    return _spec(name, f"constant:rate={per_s:.1f}", seconds, pin=pin)


def phase_name(pin: str | None, share: float) -> str:
    """`routed-70`, `pinned-onnx-int8-100`."""
    return f"{'routed' if pin is None else f'pinned-{pin}'}-{100 * share:.0f}"


def _ramp(name: str, low: float, high: float, seconds: float) -> Phase:
    return _spec(name, f"ramp:rate={low:.1f}..{high:.1f}", seconds)


def _spec(name: str, arrivals: str, seconds: float, *, pin: str | None = None) -> Phase:
    comma = "" if arrivals.endswith(":") else ","
    spec = f"{arrivals}{comma}duration={seconds:g}"
    return Phase(name=name, arrivals=spec, duration_s=seconds, pin=pin)
