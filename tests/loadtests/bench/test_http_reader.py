"""Answers out of bytes, however they are split."""

import pytest

from loadtests.bench.http_reader import Answer, AnswerReader, BrokenAnswer

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: x\r\ncontent-LENGTH: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 429 Too Many\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    b"3\r\nhel\r\n2;ext=1\r\nlo\r\n0\r\n\r\n"
)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [(PLAIN, Answer(200, b"hello", keeps=True)), (CHUNKED, Answer(429, b"hello", keeps=False))],
)
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_an_answer_is_whole_with_its_last_byte(sent: bytes, expected: Answer, size: int) -> None:
    """Byte by byte or at once: nothing before the end, then status and body."""
    reader = AnswerReader()
    for start in range(0, len(sent) - size, size):
        assert reader.feed(sent[start : start + size]) is None
    last = (len(sent) - 1) // size * size
    assert reader.feed(sent[last:]) == expected
    assert not reader.begun


def test_a_connection_brings_one_answer_after_another() -> None:
    """The next answer begins where the last one ended."""
    reader = AnswerReader()
    assert reader.feed(PLAIN) == reader.feed(PLAIN)


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nNo: length\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_cannot_be_read_is_refused(sent: bytes) -> None:
    """A body of unknown length would never end."""
    with pytest.raises(BrokenAnswer):
        AnswerReader().feed(sent)
