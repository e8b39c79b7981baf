"""CPU of a program's processes, from the text of /proc."""

import os
from pathlib import Path

from loadtests.bench import tree_cpu
from loadtests.bench.tree_cpu import MARK, Meter, Stat, belonging, is_marked, parse_stat

LINE = "{pid} ({name}) S {parent} 7 7 0 -1 4194560 9 8 0 0 {times} 20 0 1 0 99 1 1 18446 0"


def _line(pid: int, parent: int, times: str = "1 2 3 4", name: str = "ray::IDLE") -> str:
    return LINE.format(pid=pid, parent=parent, times=times, name=name)


def test_a_stat_line_is_read_whatever_the_name() -> None:
    """Names may hold spaces and parentheses; ticks are own and waited-for, user and system."""
    assert parse_stat(_line(42, 7, "10 20 300 4000", name="a) S 1 (b")) == Stat(42, 7, 4330)


def test_this_process_reads_as_it_is() -> None:
    """The kernel's own line, not only ours."""
    stat = parse_stat(Path("/proc/self/stat").read_text(encoding="latin-1"))
    assert (stat.pid, stat.parent) == (os.getpid(), os.getppid())


def test_descendants_and_marked_belong_and_others_do_not() -> None:
    """Grandchildren in any order, and the children of a marked orphan; not the parent, not a stranger."""
    pairs = [(6, 5), (5, 4), (4, 1), (9, 1), (10, 9), (1, 0), (3, 1)]
    stats = [Stat(pid, parent, 1) for pid, parent in pairs]
    assert [s.pid for s in belonging(stats, root=4, marked=[9])] == [4, 5, 6, 9, 10]
    assert belonging(stats, root=0, marked=[]) == []


def test_a_mark_is_a_whole_variable() -> None:
    """Another's mark that begins alike, or one inside of another variable, is none."""
    assert is_marked(f"A=1\0{MARK}=abc\0".encode(), "abc")
    assert not is_marked(f"{MARK}=abcd\0".encode(), "abc")
    assert not is_marked(f"X{MARK}=abc\0".encode(), "abc")


def test_a_meter_sums_its_own(tmp_path: Path, monkeypatch) -> None:
    """Root, child and a marked orphan are summed; a stranger and a process that has just gone are not."""
    for pid, parent, times, mark in (
        (4, 1, "100 0 0 0", ""),
        (5, 4, "0 100 0 0", ""),
        (8, 1, "0 0 50 50", "m"),
        (9, 1, "999 0 0 0", "n"),
    ):
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "stat").write_text(_line(pid, parent, times))
        (folder / "environ").write_text(f"{MARK}={mark}\0")
    (tmp_path / "77").mkdir()
    (tmp_path / "meminfo").touch()
    monkeypatch.setattr(tree_cpu, "PROC", tmp_path)
    meter = Meter(4, "m")
    assert meter.pids() == [4, 5, 8]
    assert meter.cpu_s() * os.sysconf("SC_CLK_TCK") == 300
