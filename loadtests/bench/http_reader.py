"""HTTP/1.1 answers out of bytes as they come, for a client that spends as little as it can.

No sockets here. A body is told by Content-Length or in chunks; answers come one at a time, since the
client sends its next request only then.
"""

from __future__ import annotations

from dataclasses import dataclass

END_OF_HEAD = b"\r\n\r\n"
LINE = b"\r\n"


class BrokenAnswer(Exception):
    """The bytes are no HTTP answer with a body of known length."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes
    keeps: bool  # whether the connection stays open


class AnswerReader:
    """Feed it what a socket gives."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._head: dict[bytes, bytes] | None = None
        self._status = 0
        self._length: int | None = None  # None: chunks

    @property
    def begun(self) -> bool:
        """Whether part of an answer has come."""
        return bool(self._bytes) or self._head is not None

    def feed(self, data: bytes) -> Answer | None:
        """Take bytes; the answer, as soon as it is whole. Raises BrokenAnswer."""
        self._bytes += data
        if self._head is None and not self._read_head():
            return None
        body = self._chunks() if self._length is None else self._plain(self._length)
        if body is None or self._head is None:
            return None
        keeps = self._head.get(b"connection", b"").lower() != b"close"
        answer = Answer(self._status, body, keeps)
        self._head = None
        return answer

    def _read_head(self) -> bool:
        end = self._bytes.find(END_OF_HEAD)
        if end < 0:
            return False
        first, *lines = bytes(self._bytes[:end]).split(LINE)
        del self._bytes[: end + len(END_OF_HEAD)]
        try:
            self._status = int(first.split(b" ", 2)[1])
            pairs = (line.split(b":", 1) for line in lines)
            self._head = {name.strip().lower(): value.strip() for name, value in pairs}
            chunked = self._head.get(b"transfer-encoding", b"").lower() == b"chunked"
            self._length = None if chunked else int(self._head[b"content-length"])
        except (IndexError, ValueError, KeyError) as error:
            raise BrokenAnswer(f"{first[:80]!r}: {error}") from error
        return True

    def _plain(self, length: int) -> bytes | None:
        if len(self._bytes) < length:
            return None
        body = bytes(self._bytes[:length])
        del self._bytes[:length]
        return body

    def _chunks(self) -> bytes | None:
        """All chunks, once the last one is there; looked at anew each time, which large bodies are not."""
        parts: list[bytes] = []
        place = 0
        while (end := self._bytes.find(LINE, place)) >= 0:
            try:
                size = int(bytes(self._bytes[place:end]).split(b";")[0], 16)
            except ValueError as error:
                raise BrokenAnswer(f"a chunk of size {bytes(self._bytes[place:end])!r}") from error
            start = end + len(LINE)
            place = start + size + len(LINE)
            if len(self._bytes) < place:
                return None
            if size == 0:
                del self._bytes[:place]
                return b"".join(parts)
            parts.append(bytes(self._bytes[start : start + size]))
        return None
