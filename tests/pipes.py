"""Connections without a network: what one end writes, the other end's protocol gets, in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Pipe(asyncio.Transport):
    """One end. Bytes arrive at the other in pieces of `piece_bytes`, as a network would cut them."""

    def __init__(self, *, piece_bytes: int) -> None:
        super().__init__()
        self.other: Pipe | None = None
        self.protocol: asyncio.Protocol | None = None
        self.written = b""
        self._piece_bytes = piece_bytes
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)
        for start in range(0, len(data), self._piece_bytes):
            piece = bytes(data[start : start + self._piece_bytes])
            asyncio.get_running_loop().call_soon(self._arrive, piece)

    def _arrive(self, piece: bytes) -> None:
        other = self.other
        if other is not None and not other._closing and other.protocol is not None:
            other.protocol.data_received(piece)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Hang up: both ends hear of it."""
        for end in (self, self.other):
            if end is not None and not end._closing:
                end._closing = True
                assert end.protocol is not None
                asyncio.get_running_loop().call_soon(end.protocol.connection_lost, None)


def join(
    near: asyncio.Protocol, far: asyncio.Protocol, *, piece_bytes: int = 7
) -> tuple[Pipe, Pipe]:
    """Connect two protocols; each is told of its end."""
    ends = Pipe(piece_bytes=piece_bytes), Pipe(piece_bytes=piece_bytes)
    ends[0].other, ends[1].other = ends[1], ends[0]
    for end, protocol in zip(ends, (near, far), strict=True):
        end.protocol = protocol
    for end, protocol in zip(ends, (near, far), strict=True):
        protocol.connection_made(end)
    return ends


async def settle(until: Callable[[], bool] = lambda: False) -> None:
    """Let everything run that can run."""
    for _ in range(2000):
        if until():
            return
        await asyncio.sleep(0)
