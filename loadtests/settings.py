"""The options that the load adds to Locust's own, and what they come to.

Each is also an environment variable: `--mix` is LOADTEST_MIX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from loadtests.arrivals import Offsets, arrivals
from loadtests.errors import BadOption
from loadtests.feasibility import Feasibility
from loadtests.users import SHAPES
from loadtests.workload import Texts, Workload, parse_mix

DEFAULT_TIMEOUT_S = 60.0

OPTIONS = {
    "mix": "classes and weights as tight=3,interactive=4, or budgets as 50ms=3 (default: all six)",
    "texts": "file of texts, one a line (default: built-in ones of three lengths)",
    "feasibility": "file that says which texts an idle server admits under which budget, as `python -m "
    "loadtests run` writes it (default: none, and all requests count as feasible)",
    "seed": "of arrivals, classes and texts (default: 0)",
    "arrivals": "open loop: constant, ramp, step, spike, sinus, bursty or trace, as "
    "ramp:rate=5..200,duration=60; --users is not used then",
    "shape": f"closed loop: how the users grow up to --users over --run-time: {', '.join(SHAPES)}",
    "pin": "variant that answers everything (default: the server routes)",
    "bulk-variant": "variant that answers the class bulk (default: the cheapest served)",
    "record": "file to append a row to for each request",
    "phase": "name of this run in the recorded rows (default: run)",
    "api-key": "sent as Authorization: Bearer; never recorded",
    "timeout-s": f"seconds until a request is given up (default: {DEFAULT_TIMEOUT_S:.0f})",
}


def variable(option: str) -> str:
    """Name the environment variable of an option."""
    return f"LOADTEST_{option.upper().replace('-', '_')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a process is to send, and where it writes."""

    workload: Workload  # pinned to `pin`, where one is given
    seed: int
    arrivals: Offsets | None  # None: closed loop
    shape: str | None
    bulk_variant: str | None
    record: Path | None
    phase: str
    api_key: str | None
    timeout_s: float

    @classmethod
    def parse(cls, given: Mapping[str, object]) -> Settings:
        """Read options by their names in a parser's namespace; raises LoadTestError."""
        text = {name: str(given.get(name.replace("-", "_")) or "") for name in OPTIONS}
        seed = int(_number("--seed", text["seed"] or "0"))
        if text["arrivals"] and text["shape"]:
            raise BadOption(
                "--shape", text["shape"], "a shape of users and --arrivals exclude each other"
            )
        if text["shape"] and text["shape"] not in SHAPES:
            raise BadOption("--shape", text["shape"], f"no such shape; {', '.join(SHAPES)}")
        timeout_s = _number("--timeout-s", text["timeout-s"] or str(DEFAULT_TIMEOUT_S))
        if timeout_s <= 0:
            raise BadOption("--timeout-s", text["timeout-s"], "not above zero")
        return cls(
            workload=_workload(text),
            seed=seed,
            arrivals=arrivals(text["arrivals"], seed) if text["arrivals"] else None,
            shape=text["shape"] or None,
            bulk_variant=text["pin"] or text["bulk-variant"] or None,
            record=Path(text["record"]) if text["record"] else None,
            phase=text["phase"] or "run",
            api_key=text["api-key"] or None,
            timeout_s=timeout_s,
        )


def _workload(text: Mapping[str, str]) -> Workload:
    texts = Texts.from_file(Path(text["texts"])) if text["texts"] else Texts.built_in()
    workload = Workload(parse_mix(text["mix"]), texts)
    if text["feasibility"]:
        known = Feasibility.read(Path(text["feasibility"]))
        workload = replace(workload, infeasible=known.infeasible(texts))
    if text["pin"]:
        workload = workload.pinned({c.name: text["pin"] for c in workload.classes})
    return workload


def _number(option: str, given: str) -> float:
    try:
        number = float(given)
    except ValueError:
        raise BadOption(option, given, "not a number") from None
    if not abs(number) < float("inf"):
        raise BadOption(option, given, "not a finite number")
    return number
