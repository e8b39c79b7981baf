"""The file of requests: what is written is read, also while it grows and by several writers."""

from pathlib import Path

import numpy as np
import pytest

from loadtests.errors import BadFile
from loadtests.records import (
    FIELDS,
    ClientCost,
    Row,
    RowWriter,
    read_columns,
    read_rows,
    to_columns,
)

SERVED = Row(
    phase="run",
    hint_class="tight",
    intended_s=1700000000.123456,
    sent_s=1700000000.123556,
    finished_s=1700000000.133456,
    latency_ms=10.0,
    status=200,
    variant="openvino-int8",
    fidelity=0.99699,
    budget_ms=25.0,
    within_budget=True,
    feasible=True,
    texts=1,
    error="",
)
LOST = Row("run", "bulk", 2.5, 2.5, 3.5, 1000.0, 0, "", None, None, None, None, 32, 'no, "answer"')


def _written(file: Path, *rows: Row) -> Path:
    writer = RowWriter(file)
    for row in rows:
        writer.write(row)
    writer.close()
    return file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Rows come back as they were, with their gaps, commas and quotes."""
    file = _written(tmp_path / "new folder" / "requests.csv", SERVED, LOST)
    assert read_rows(file)[0] == [SERVED, LOST]
    assert file.read_text().splitlines()[0] == ",".join(FIELDS)


def test_a_row_is_one_line(tmp_path: Path) -> None:
    """An error of several lines is written as one."""
    two_lines = Row(
        "run", "bulk", 2.5, 2.5, 3.5, 1000.0, 0, "", None, None, None, False, 32, "a\r\nb"
    )
    assert read_rows(_written(tmp_path / "r.csv", two_lines))[0][0].error == "a b"


def test_several_writers_share_a_file(tmp_path: Path) -> None:
    """Each flush appends whole lines, and the header is written once."""
    first, second = RowWriter(tmp_path / "r.csv"), RowWriter(tmp_path / "r.csv")
    for writer in (first, second, first):
        writer.write(SERVED)
        writer.flush()
    assert read_rows(tmp_path / "r.csv")[0] == [SERVED] * 3


def test_a_growing_file_is_read_on(tmp_path: Path) -> None:
    """A reader goes on where it was; half a line waits until it is whole."""
    file = tmp_path / "r.csv"
    writer = RowWriter(file)
    assert read_rows(file)[0] == []
    writer.write(SERVED)
    writer.flush()
    rows, offset = read_rows(file)
    assert rows == [SERVED]
    line = file.read_bytes().splitlines(keepends=True)[-1]
    with file.open("ab") as opened:
        opened.write(line[:40])
    assert read_rows(file, offset=offset) == ([], offset)
    with file.open("ab") as opened:
        opened.write(line[40:])
    assert read_rows(file, offset=offset)[0] == [SERVED]


def test_columns_have_a_value_for_each_row(tmp_path: Path) -> None:
    """Gaps are NaN, and a choice of rows keeps every column in step."""
    columns = read_columns(_written(tmp_path / "r.csv", SERVED, LOST))
    assert len(columns) == 2
    assert columns.within_budget[0] == 1.0
    assert columns.feasible[0] == 1.0
    assert np.isnan(columns.budget_ms[1])
    assert np.isnan(columns.feasible[1])
    lost = columns.where(columns.status == 0)
    assert lost.hint_class.tolist() == ["bulk"]
    assert lost.texts.tolist() == [32]
    assert len(to_columns([])) == 0


@pytest.mark.parametrize("content", ["a,b\n1,2\n", ",".join(FIELDS) + "\n1,2\n"])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: str) -> None:
    """A foreign file, or a row that is none, is refused in one line that names the file."""
    (tmp_path / "other.csv").write_text(content)
    with pytest.raises(BadFile, match=r"other\.csv") as refused:
        read_rows(tmp_path / "other.csv")
    assert "\n" not in str(refused.value)


def test_a_file_of_another_version_says_what_it_lacks(tmp_path: Path) -> None:
    """Rows from before a column are neither read nor added to, and the one line names the column."""
    file = tmp_path / "old.csv"
    old = ",".join(f for f in FIELDS if f != "feasible") + "\nrun,tight,1,1,1,10,200,a,1,25,1,1,\n"
    file.write_text(old)
    for use in (read_rows, RowWriter):
        with pytest.raises(
            BadFile, match=r"old\.csv.* from another version, without feasible:"
        ) as refused:
            use(file)
        assert "\n" not in str(refused.value)
    assert file.read_text() == old


def test_a_foreign_file_is_not_written_to(tmp_path: Path) -> None:
    """--record never spoils a file that holds something else, and says when it cannot write."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadFile, match=r"notes\.txt"):
        RowWriter(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(BadFile, match="cannot be written"):
        RowWriter(tmp_path)
    with pytest.raises(BadFile, match="cannot be read"):
        read_rows(tmp_path / "nowhere.csv")


def test_the_cost_of_several_workers_is_their_sum(tmp_path: Path) -> None:
    """CPU time and what was dropped add up; the longest worker gives the time."""
    record = tmp_path / "r.csv"
    assert ClientCost.read(record) is None
    ClientCost(cpu_s=1.0, wall_s=10.0, dropped=1).write(record, worker=0)
    ClientCost(cpu_s=2.0, wall_s=11.0, dropped=2).write(record, worker=1)
    assert ClientCost.read(record) == ClientCost(cpu_s=3.0, wall_s=11.0, dropped=3)


@pytest.mark.parametrize("status", [200, 429, 504, 0, 500, 401])
def test_refused_and_expired_are_no_failures(status: int) -> None:
    """429 and 504 are the server's contract; any other status, or no answer, is a failure."""
    row = Row("run", "tight", 0.0, 0.0, 0.0, 0.0, status, "", None, None, None, None, 1, "")
    assert row.failed is (status in {0, 500, 401})
