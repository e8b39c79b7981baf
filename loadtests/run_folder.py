"""A run's folder: `run.json` says what was done; `requests.csv` and `samples.csv` hold what came of it.

`feasibility.json` says which texts the idle server admitted, see `feasibility.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from converters.provenance import Provenance
from loadtests.errors import BadFile
from loadtests.served import Served

ABOUT = "run.json"
REQUESTS = "requests.csv"
SAMPLES = "samples.csv"
LOG = "locust.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A phase that ran."""

    name: str
    arrivals: str
    pin: str | None
    started_s: float  # epoch
    ended_s: float
    client_share: float | None  # of one core; None when the client could not tell
    dropped: int  # requests due that were cut off by the end


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What was done to whom, from where. No key is in it."""

    provenance: Provenance
    host: str
    profile: str
    main_phase: str
    seed: int
    mix: str  # classes and weights
    served: tuple[Served, ...]
    tokens_per_request: float
    feasible: dict[str, float]  # by hint class with a budget: share that the idle server admitted
    token_limits: dict[str, int]  # by the same: the most tokens that it admitted
    estimated_texts: int  # texts whose tokens were estimated by their length
    phases: tuple[Ran, ...] = ()
    interrupted: bool = False
    stopped_by: str | None = None  # why it ended early, other than by Ctrl-C
    slos: tuple[str, ...] = field(default=())

    def with_phase(self, ran: Ran) -> About:
        """As this, one phase later."""
        return replace(self, phases=(*self.phases, ran))

    def write(self, folder: Path) -> None:
        """Write it; after every phase, so that a run that dies can still be reported."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / ABOUT).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> About:
        """Read it back.

        Raises:
            BadFile: there is no run, or of another form.
        """
        try:
            given = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in given]
            if missing:
                raise ValueError(f"it has no {', '.join(missing)}")  # noqa: TRY301
            return cls(**(given | _typed(given)))
        except OSError as error:
            raise BadFile(f"{folder}: no run is there ({ABOUT}: {error.strerror})") from error
        except (ValueError, TypeError, KeyError) as error:
            raise BadFile(f"{folder / ABOUT} is of another form: {error}") from error


def _typed(given: dict[str, Any]) -> dict[str, Any]:
    def all_of(kind: type[Any], items: Iterable[dict[str, Any]]) -> tuple[Any, ...]:
        return tuple(kind(**item) for item in items)

    return {
        "provenance": Provenance(**given["provenance"]),
        "served": all_of(Served, given["served"]),
        "phases": all_of(Ran, given["phases"]),
        "slos": tuple(given["slos"]),
    }


def new_folder(folder: Path) -> Path:
    """Make a run's folder, without touching a run that is there.

    Raises:
        BadFile: it holds a run, or cannot be made.
    """
    if (folder / REQUESTS).exists() or (folder / ABOUT).exists():
        raise BadFile(f"--out={folder}: a run is there already; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOG).touch()
    except OSError as error:
        raise BadFile(f"--out={folder}: cannot be written: {error.strerror}") from error
    return folder
