"""Samples of the server: read back, judged, and of the right process tree."""

import os
import socket
from pathlib import Path

import psutil
import pytest

from loadtests.sampling import Sample, Tree, growth, read_samples, server_process


def _memory(values: list[float]) -> list[Sample]:
    return [Sample(float(t), "server_rss_bytes", "", v) for t, v in enumerate(values)]


def test_growth_is_the_last_quarter_against_the_first() -> None:
    """A spike in either quarter and all of the warm-up are left out of account."""
    values = [1.0] * 20 + [100.0] * 20 + [104.0] * 40 + [110.0] * 20
    values[25], values[95] = 999.0, 1.0
    found = growth(_memory(values), from_s=0, to_s=99, warm_s=20)
    assert found == pytest.approx(0.10)
    assert growth(_memory(values), from_s=0, to_s=99, warm_s=95) is None


def test_a_half_written_sample_is_left_out(tmp_path: Path) -> None:
    """What a crash left of the last line is no sample; no file is none at all."""
    file = tmp_path / "samples.csv"
    assert read_samples(file) == []
    file.write_text("time_s,what,name,value\n1.5,replicas,a,2\n2.5,repl", encoding="utf-8")
    assert read_samples(file) == [Sample(1.5, "replicas", "a", 2.0)]


def test_the_listener_at_a_port_is_found_here_and_nowhere_else() -> None:
    """The process that listens, itself the root where nothing of ours is above; none for another host."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        found = server_process(f"http://127.0.0.1:{port}")
        assert found is not None
        assert found.pid == os.getpid() or found in psutil.Process().parents()
        assert server_process(f"http://example.invalid:{port}") is None
    assert server_process(f"http://127.0.0.1:{port}") is None


def test_a_tree_tells_memory_and_processor_time() -> None:
    """Bytes at once, cores from the second reading on; a process that is gone has none."""
    tree = Tree(psutil.Process())
    resident, cores = tree.read()
    assert resident > 1_000_000
    assert cores is None
    sum(i * i for i in range(200_000))
    assert (tree.read()[1] or 0) > 0
