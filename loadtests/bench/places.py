"""Where a run's results go: `loadtests/results/<date>-<machine>/<what>`."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from loadtests.errors import BadFile
from serve_app.engines.measure import hardware_name

RESULTS = Path(__file__).parents[1] / "results"
NOISE = re.compile(r"\((r|tm)\)|@.*?(?=,)|\b(processor|cpu|with)\b", re.IGNORECASE)


def machine_slug(hardware: str) -> str:
    """`Intel(R) Xeon(R) Processor, 2 cores, avx2` → `intel-xeon-2-cores`."""
    named = ",".join(hardware.split(",")[:2])
    words = re.findall(r"[a-z0-9]+", NOISE.sub(" ", named).lower())
    return "-".join(words)


def results_folder(what: str, *, out: Path | None) -> Path:
    """Make the folder; a run that is there already is left alone, and this one gets a number.

    Raises:
        BadFile: it cannot be made.
    """
    machine = machine_slug(hardware_name("cpu"))
    first = out or RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{machine}" / what
    folder, number = first, 1
    while folder.exists() and any(folder.iterdir()):
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadFile(f"--out={folder}: cannot be made: {error.strerror}") from error
    return folder
