"""A row for each request, as CSV: written while the load runs, read by whoever follows or reports.

Several processes may write one file (Locust's workers): each flush is one append of whole lines.
Beside FILE lies what sending cost: `FILE.cpu.json`, `FILE.worker-1.cpu.json`, …
"""

from __future__ import annotations

import csv
import fcntl
import glob
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from loadtests.errors import BadFile

OK = 200
NOT_ADMITTED = 429
EXPIRED = 504
NO_ANSWER = 0  # the status of a request that got no HTTP answer


@dataclass(frozen=True, slots=True)
class Row:
    """One request; times are seconds since the epoch."""

    phase: str
    hint_class: str
    intended_s: float  # when it should have been sent; closed loop: when it was
    sent_s: float
    finished_s: float
    latency_ms: float  # from intended_s to finished_s
    status: int
    variant: str  # empty: no answer named one
    fidelity: float | None
    budget_ms: float | None
    within_budget: bool | None  # judged by this client; None without a budget
    feasible: (
        bool | None
    )  # whether an idle server admits it; None: nobody asked, and it counts as such
    texts: int
    error: str  # one line, or empty

    @property
    def failed(self) -> bool:
        """Neither answered, nor refused for lack of time: 429 and 504 are part of the contract."""
        return self.status not in (OK, NOT_ADMITTED, EXPIRED)


FIELDS = tuple(field.name for field in fields(Row))
HEADER = (",".join(FIELDS) + "\n").encode()


@dataclass(frozen=True, slots=True)
class Columns:
    """The same rows by column, each [rows]; NaN stands for None, 1.0 and 0.0 for yes and no."""

    phase: NDArray[np.str_]
    hint_class: NDArray[np.str_]
    intended_s: NDArray[np.float64]
    sent_s: NDArray[np.float64]
    finished_s: NDArray[np.float64]
    latency_ms: NDArray[np.float64]
    status: NDArray[np.int64]
    variant: NDArray[np.str_]
    fidelity: NDArray[np.float64]
    budget_ms: NDArray[np.float64]
    within_budget: NDArray[np.float64]
    feasible: NDArray[np.float64]
    texts: NDArray[np.int64]
    error: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.status)

    def where(self, chosen: NDArray[np.bool_]) -> Columns:
        """Only the rows that are chosen."""
        return Columns(*(getattr(self, name)[chosen] for name in FIELDS))


def to_columns(rows: Sequence[Row]) -> Columns:
    """Turn rows into columns; no rows make empty columns of the right types."""
    kinds: dict[str, DTypeLike] = dict.fromkeys(("phase", "hint_class", "variant", "error"), str)
    kinds |= {"status": np.int64, "texts": np.int64}
    return Columns(
        *(
            np.array([getattr(row, name) for row in rows], dtype=kinds.get(name, np.float64))
            for name in FIELDS
        )
    )


class RowWriter:
    """Appends rows to a file; they can be read once flushed."""

    def __init__(self, file: Path) -> None:
        self._lines = io.StringIO()
        self._csv = csv.writer(self._lines, lineterminator="\n")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise BadFile(f"{file} cannot be written: {error.strerror}") from None
        self._begin(file)

    def _begin(self, file: Path) -> None:
        """Write the header once, whichever of several writers comes first."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        start = os.pread(self._descriptor, len(HEADER), 0)
        if not start:
            os.write(self._descriptor, HEADER)
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        if start not in (b"", HEADER):
            raise BadFile(f"{file} is there already, and {_unlike(start)}: it is left as it is")

    def write(self, row: Row) -> None:
        """Take a row; it is in memory until the next flush."""
        cells = (getattr(row, name) for name in FIELDS)
        self._csv.writerow([_cell(name, cell) for name, cell in zip(FIELDS, cells, strict=True)])

    def flush(self) -> None:
        """Append what was taken since the last flush."""
        data = self._lines.getvalue().encode()
        self._lines.seek(0)
        self._lines.truncate()
        while data:
            data = data[os.write(self._descriptor, data) :]

    def close(self) -> None:
        """Flush, and write no more."""
        self.flush()
        os.close(self._descriptor)


def _cell(name: str, value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return f"{value:.6f}" if name.endswith("_s") else f"{value:.6g}"
    return " ".join(value.split()) if isinstance(value, str) else value


def read_rows(file: Path, *, offset: int = 0) -> tuple[list[Row], int]:
    """Read the rows from a byte offset on, and the offset to go on from: a live file's last line may be half."""
    try:
        with file.open("rb") as opened:
            header = opened.read(len(HEADER))
            opened.seek(max(offset, len(HEADER)))
            data = opened.read()
    except OSError as error:
        raise BadFile(f"{file} cannot be read: {error.strerror}") from None
    if header != HEADER:
        if offset == 0 and HEADER.startswith(header):
            return [], 0  # its writer has only just begun
        raise BadFile(f"{file} {_unlike(header)}: its first line is not {HEADER.decode().strip()}")
    whole = data[: data.rfind(b"\n") + 1]
    lines = csv.reader(io.StringIO(whole.decode(), newline=""))
    rows = [_row(cells, file) for cells in lines]
    return rows, max(offset, len(HEADER)) + len(whole)


def _unlike(start: bytes) -> str:
    """What a file holds whose beginning is not ours."""
    names = start.decode(errors="replace").partition("\n")[0].split(",")
    missing = [name for name in FIELDS if name not in names]
    if names[:2] == list(FIELDS[:2]):
        return f"is from another version, without {', '.join(missing) or 'this order of columns'}"
    return "holds no requests"


def read_columns(file: Path) -> Columns:
    """Read all rows by column."""
    return to_columns(read_rows(file)[0])


def _row(cells: list[str], file: Path) -> Row:
    try:
        return Row(*(READ[name](cell) for name, cell in zip(FIELDS, cells, strict=True)))
    except ValueError:
        raise BadFile(f"{file} has a row that is no request: {','.join(cells)[:80]}") from None


def _optional_float(cell: str) -> float | None:
    return float(cell) if cell else None


def _optional_bool(cell: str) -> bool | None:
    return bool(int(cell)) if cell else None


READ: dict[str, Callable[[str], Any]] = dict.fromkeys(FIELDS, str) | {
    "intended_s": float,
    "sent_s": float,
    "finished_s": float,
    "latency_ms": float,
    "status": int,
    "fidelity": _optional_float,
    "budget_ms": _optional_float,
    "within_budget": _optional_bool,
    "feasible": _optional_bool,
    "texts": int,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCost:
    """What sending cost the client; of several processes, their sum."""

    cpu_s: float
    wall_s: float  # of several processes, the longest
    dropped: int  # requests that were due, and that the end of the load cut off

    def write(self, record: Path, *, worker: int | None = None) -> None:
        """Write beside a file of requests; `worker` is the number of one of several processes."""
        name = (
            f"{record.name}.cpu.json"
            if worker is None
            else f"{record.name}.worker-{worker}.cpu.json"
        )
        record.with_name(name).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, record: Path) -> Self | None:
        """Read what lies beside a file of requests; None when nothing does."""
        files = [
            record.with_name(f"{record.name}.cpu.json"),
            *record.parent.glob(f"{glob.escape(record.name)}.worker-*.cpu.json"),
        ]
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
        if not found:
            return None
        return cls(
            cpu_s=sum(cost["cpu_s"] for cost in found),
            wall_s=max(cost["wall_s"] for cost in found),
            dropped=sum(cost["dropped"] for cost in found),
        )
