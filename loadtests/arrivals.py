"""Open-loop arrivals: when each request is due, whatever became of those before it.

A schedule is sorted offsets in seconds. It is read from text such as `ramp:rate=5..200,duration=60`:

    constant:rate=50,duration=30                    Poisson arrivals at 50 a second
    ramp:rate=5..200,duration=60                    the rate grows linearly
    step:rate=5..200,duration=60,steps=5            the same in steps
    spike:rate=20..200,duration=60,width=5          a spike in the middle, so many seconds wide
    sinus:rate=20..100,duration=60,period=30        from the low to the high rate and back
    bursty:rate=50,duration=60                      bursts of 26 times the rate: see `bursts.py`
    trace:file=arrivals.csv,rate=50,duration=30     a recorded trace, its time scaled to a rate

Where a rate varies, arrivals are a Poisson process of that rate: unit-rate arrivals taken through
the inverse of the integrated rate (Çinlar 1975, time rescaling).
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadtests.bursts import bursty
from loadtests.errors import BadFile, BadOption

Offsets = NDArray[np.float64]  # seconds from the start, sorted
OPTION = "--arrivals"
DEFAULT_DURATION_S = 60.0
MOST_ARRIVALS = 10_000_000
GRID_S = 0.01


@dataclass(frozen=True, slots=True)
class Spec:
    """A schedule as asked for: its kind, and its parameters as text."""

    given: str
    kind: str
    values: dict[str, str]

    @classmethod
    def parse(cls, given: str) -> Spec:
        """Split `kind:name=value,…`; the kind and the names must be known."""
        kind, _, rest = given.partition(":")
        if kind not in KINDS:
            raise BadOption(OPTION, given, f"no arrivals are named {kind!r}; {', '.join(KINDS)}")
        values: dict[str, str] = {}
        for part in filter(None, (part.strip() for part in rest.split(","))):
            name, equals, value = part.partition("=")
            if not equals or name not in KINDS[kind].takes:
                takes = ", ".join(KINDS[kind].takes)
                raise BadOption(OPTION, given, f"{part!r} is not understood; {kind} takes {takes}")
            values[name] = value
        return cls(given, kind, values)

    def number(self, name: str, default: float | None = None) -> float:
        """Read a number above zero."""
        if name not in self.values:
            if default is None:
                raise BadOption(OPTION, self.given, f"{name}= is missing")
            return default
        return self._positive(name, self.values[name])

    def rates(self) -> tuple[float, float]:
        """Read `rate=LOW..HIGH`, in requests a second."""
        low, dots, high = self.values.get("rate", "").partition("..")
        if not dots:
            raise BadOption(OPTION, self.given, f"{self.kind} needs two rates, as rate=5..50")
        return self._positive("rate", low), self._positive("rate", high)

    def _positive(self, name: str, value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            raise BadOption(OPTION, self.given, f"{name}={value} is not a number above zero")
        return number


def arrivals(given: str, seed: int = 0) -> Offsets:
    """Make the schedule that a text asks for; raises BadOption or BadFile."""
    spec = Spec.parse(given)
    offsets = KINDS[spec.kind].make(spec, np.random.default_rng(seed))
    if not len(offsets):
        raise BadOption(OPTION, given, "no request would be sent")
    return offsets


def _constant(spec: Spec, rng: np.random.Generator) -> Offsets:
    rate = spec.number("rate")
    return poisson(lambda t: np.full_like(t, rate), _duration(spec), rng, spec=spec)


def _ramp(spec: Spec, rng: np.random.Generator) -> Offsets:
    (low, high), duration_s = spec.rates(), _duration(spec)
    return poisson(lambda t: low + (high - low) * t / duration_s, duration_s, rng, spec=spec)


def _step(spec: Spec, rng: np.random.Generator) -> Offsets:
    (low, high), duration_s = spec.rates(), _duration(spec)
    steps = max(int(spec.number("steps", 5)), 2)

    def rate(t: Offsets) -> Offsets:
        step = np.minimum(np.floor(t / duration_s * steps), steps - 1)
        return np.asarray(low + (high - low) * step / (steps - 1))

    return poisson(rate, duration_s, rng, spec=spec)


def _spike(spec: Spec, rng: np.random.Generator) -> Offsets:
    (low, high), duration_s = spec.rates(), _duration(spec)
    width_s = spec.number("width", duration_s / 6)
    return poisson(
        lambda t: np.asarray(np.where(np.abs(t - duration_s / 2) <= width_s / 2, high, low)),
        duration_s,
        rng,
        spec=spec,
    )


def _sinus(spec: Spec, rng: np.random.Generator) -> Offsets:
    (low, high), duration_s = spec.rates(), _duration(spec)
    period_s = spec.number("period", duration_s / 2)
    return poisson(
        lambda t: low + (high - low) * (1 - np.cos(2 * np.pi * t / period_s)) / 2,
        duration_s,
        rng,
        spec=spec,
    )


def _bursty(spec: Spec, rng: np.random.Generator) -> Offsets:
    rate, duration_s = spec.number("rate"), _duration(spec)
    _check_size(rate * duration_s, spec)
    return bursty(rate, duration_s, rng)


def _trace(spec: Spec, _: np.random.Generator) -> Offsets:
    if not spec.values.get("file"):
        raise BadOption(OPTION, spec.given, "file= is missing")
    recorded = read_trace(Path(spec.values["file"]))
    if "rate" in spec.values:
        mean_rate = (len(recorded) - 1) / recorded[-1]
        recorded = recorded * (mean_rate / spec.number("rate"))
    duration_s = spec.number("duration", float(recorded[-1]))
    return np.asarray(recorded[recorded <= duration_s])


@dataclass(frozen=True, slots=True)
class Kind:
    """How a kind of arrivals is made, and the parameters it takes."""

    make: Callable[[Spec, np.random.Generator], Offsets]
    takes: tuple[str, ...]


KINDS = {
    "constant": Kind(_constant, ("rate", "duration")),
    "ramp": Kind(_ramp, ("rate", "duration")),
    "step": Kind(_step, ("rate", "duration", "steps")),
    "spike": Kind(_spike, ("rate", "duration", "width")),
    "sinus": Kind(_sinus, ("rate", "duration", "period")),
    "bursty": Kind(_bursty, ("rate", "duration")),
    "trace": Kind(_trace, ("file", "rate", "duration")),
}


def _duration(spec: Spec) -> float:
    return spec.number("duration", DEFAULT_DURATION_S)


def _check_size(count: float, spec: Spec | None) -> None:
    if spec is not None and count > MOST_ARRIVALS:
        raise BadOption(
            OPTION, spec.given, f"{count:.0f} requests are more than the {MOST_ARRIVALS} we plan"
        )


def poisson(
    rate: Callable[[Offsets], Offsets],
    duration_s: float,
    rng: np.random.Generator,
    *,
    spec: Spec | None = None,
) -> Offsets:
    """Draw arrivals of a Poisson process whose rate at `t` seconds is `rate(t)` a second."""
    _check_size(duration_s / GRID_S, spec)
    t = np.linspace(0.0, duration_s, int(np.ceil(duration_s / GRID_S)) + 1)
    middles = (t[1:] + t[:-1]) / 2
    expected = np.concatenate([[0.0], np.cumsum(rate(middles) * np.diff(t))])
    _check_size(expected[-1], spec)
    count = rng.poisson(expected[-1])
    return np.asarray(np.interp(np.sort(rng.uniform(0.0, expected[-1], count)), expected, t))


def read_trace(file: Path) -> Offsets:
    """Read arrival offsets from a CSV: column `offset_ms` or `offset_s`, sorted, from zero on."""
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            rows = csv.DictReader(opened)
            names = set(rows.fieldnames or ())
            column = next((name for name in ("offset_ms", "offset_s") if name in names), None)
            if column is None:
                raise BadFile(f"{OPTION}: {file} has no column offset_ms or offset_s")
            offsets = np.array([float(row[column]) for row in rows])
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise BadFile(f"{OPTION}: the trace {file} cannot be read: {why}") from None
    except (ValueError, TypeError) as error:
        raise BadFile(f"{OPTION}: {file} has an offset that is no number: {error}") from None
    if len(offsets) < 2 or not np.isfinite(offsets).all() or np.ptp(offsets) == 0:  # noqa: PLR2004
        raise BadFile(f"{OPTION}: {file} holds fewer than two arrivals")
    offsets = np.sort(offsets) - offsets.min()
    return np.asarray(offsets / 1000 if column == "offset_ms" else offsets)
