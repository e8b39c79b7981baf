"""What a flood of refusals tells of a router's door."""

import pytest

from loadtests import door
from loadtests.door import Door, is_whole, measure_door


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (b"HTTP/1.1 429 x\r\nContent-Length: 4\r\n\r\nbody", True),
        (b"HTTP/1.1 429 x\r\ncontent-length: 5\r\n\r\nbody", False),
        (b"HTTP/1.1 429 x\r\nContent-Le", False),
        (b"HTTP/1.1 204 x\r\n\r\n", True),
    ],
)
def test_an_answer_is_whole_when_its_length_is_there(answer: bytes, *, whole: bool) -> None:
    """However it arrives in pieces."""
    assert is_whole(answer) == whole


def _told(monkeypatch: pytest.MonkeyPatch, *, answers: dict[bytes, int | None]) -> Door | None:
    """What is found where a request refused unread takes 0.3 ms and one that is read 1 ms."""
    spent_s = [0.0]

    def flood(_host: str, request: bytes, *, for_s: float) -> int | None:
        del for_s
        kind = b"text/plain" if b"text/plain" in request else b"json"
        count = answers[kind]
        spent_s[0] += (count or 0) * (0.0003 if kind == b"text/plain" else 0.001)
        return count

    monkeypatch.setattr(door, "_flood", flood)
    monkeypatch.setattr(door, "cpu_s", lambda _root: {1: ("router", spent_s[0])})
    return measure_door("http://127.0.0.1:1", None, text="a")  # type: ignore[arg-type]


def test_costs_count_by_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cheap refusals are answered more often in the same time, and cost less each."""
    found = _told(monkeypatch, answers={b"text/plain": 3000, b"json": 900})
    assert found is not None
    assert (found.unread_ms, found.read_ms) == pytest.approx((0.3, 1.0))


def test_a_server_that_refuses_nothing_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one that hangs up."""
    assert _told(monkeypatch, answers={b"text/plain": 3000, b"json": None}) is None
