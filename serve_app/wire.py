"""The frames that a router and a replica exchange on a connection of their own.

    size u32 | kind u8 | call u32 | body        little-endian; `size` counts what follows it

| kind | from | body |
|---|---|---|
| HELLO | router | the replica's token, which only the cluster knows |
| WELCOME | replica | JSON: its name, its host, and its profile where it measured one |
| CALL | router | count u32, lengths i32[count], milliseconds left f32[count], token ids i32 |
| CANCEL | router | nothing: nobody waits for the call any more |
| REPLY | replica | `REPLY_HEAD`, dropped i32[], vectors f32[texts, dims] |
| FAILED | replica | nothing: the engine failed, and the replica's log says how |
| LEAVING | replica | nothing: it finishes what it has, and wants no more |

Serve's own handle carries the same call for about 3 CPU-ms on each side, and these bytes for a tenth of it
(`docs/fast-path.md`). There is no pickle here.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct, pack, unpack
from typing import NamedTuple

from pydantic import TypeAdapter

from serve_app.calls import NUMBER_BYTES, Call, Reply
from serve_app.manifest import Profile
from serve_app.policy.replica_state import ReplicaState

SIZE = Struct("<I")
HEAD = Struct("<IBI")  # size, kind, call
COUNT = Struct("<I")
REPLY_HEAD = Struct("<dddII")  # queue_ms, inference_ms, pace, queued_tokens, dropped texts
LARGEST_FRAME_BYTES = 256 * 1024 * 1024  # above it, this is not our protocol


# A host that is gone says nothing: silence is asked about, and what it never confirmed ends the connection.
SILENT_S, AGAIN_S, TIMES, UNCONFIRMED_MS = 5, 2, 3, 10_000
_OPTIONS = {
    "TCP_KEEPIDLE": SILENT_S,
    "TCP_KEEPINTVL": AGAIN_S,
    "TCP_KEEPCNT": TIMES,
    "TCP_USER_TIMEOUT": UNCONFIRMED_MS,
}


def notice_lost_hosts(transport: asyncio.BaseTransport) -> None:
    """End the connection when the other host vanishes, about ten seconds after it did."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS.items():
        if hasattr(socket, name):  # not every system has each
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 0
    WELCOME = 1
    CALL = 2
    CANCEL = 3
    REPLY = 4
    FAILED = 5
    LEAVING = 6


class Frame(NamedTuple):
    """One message."""

    kind: int
    call: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Welcome:
    """Who answers and where, and its own profile if the manifest's does not fit its hardware."""

    replica: str
    measured: Profile | None
    host: str = ""


_WELCOME = TypeAdapter(Welcome)


class NotOurProtocol(Exception):
    """The bytes are no frames."""


class FrameReader:
    """Frames out of a stream that arrives in pieces of any size."""

    def __init__(self, *, largest_bytes: int = LARGEST_FRAME_BYTES) -> None:
        self.largest_bytes = largest_bytes
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that end within `data`.

        Raises:
            NotOurProtocol: a frame says that it is larger than any of ours.
        """
        pending = self._pending
        pending += data
        start = 0
        while len(pending) - start >= HEAD.size:
            size, kind, call = HEAD.unpack_from(pending, start)
            if not HEAD.size - SIZE.size <= size <= self.largest_bytes:
                raise NotOurProtocol(f"a frame of {size} bytes")
            end = start + SIZE.size + size
            if end > len(pending):
                break
            yield Frame(kind, call, bytes(pending[start + HEAD.size : end]))
            start = end
        del pending[:start]


def frame(kind: Kind, call: int = 0, *body: bytes) -> bytes:
    """One frame as bytes, its body in pieces."""
    size = HEAD.size - SIZE.size + sum(map(len, body))
    return b"".join((HEAD.pack(size, kind, call), *body))


def call_frame(number: int, call: Call) -> bytes:
    """A call, under the number that its reply will have."""
    return frame(Kind.CALL, number, COUNT.pack(call.count), call.lengths, call.left_ms, call.ids)


def read_call(body: bytes) -> Call:
    """What `call_frame` packed.

    Raises:
        NotOurProtocol: the parts do not add up to the whole.
    """
    count = int.from_bytes(body[: COUNT.size], "little")
    lengths_end = COUNT.size + count * NUMBER_BYTES
    left_end = lengths_end + count * NUMBER_BYTES
    if count == 0 or len(body) < left_end:
        raise NotOurProtocol(f"a call of {count} texts in {len(body)} bytes")
    lengths = body[COUNT.size : lengths_end]
    tokens = sum(unpack(f"<{count}i", lengths))
    if len(body) != left_end + tokens * NUMBER_BYTES:
        raise NotOurProtocol(f"a call of {tokens} tokens in {len(body)} bytes")
    return Call(ids=body[left_end:], lengths=lengths, left_ms=body[lengths_end:left_end])


def reply_frame(number: int, reply: Reply) -> bytes:
    """A reply, without what the replica said in its welcome."""
    state = reply.state
    head = REPLY_HEAD.pack(
        reply.queue_ms, reply.inference_ms, state.pace, state.queued_tokens, len(reply.dropped)
    )
    dropped = pack(f"<{len(reply.dropped)}i", *reply.dropped)
    return frame(Kind.REPLY, number, head, dropped, reply.vectors)


def read_reply(body: bytes, welcome: Welcome) -> Reply:
    """What `reply_frame` packed, with what the replica said in its welcome.

    Raises:
        NotOurProtocol: it is cut short.
    """
    if len(body) < REPLY_HEAD.size:
        raise NotOurProtocol(f"a reply of {len(body)} bytes")
    queue_ms, inference_ms, pace, queued_tokens, dropped = REPLY_HEAD.unpack_from(body)
    vectors_start = REPLY_HEAD.size + dropped * NUMBER_BYTES
    if len(body) < vectors_start:
        raise NotOurProtocol(f"a reply that drops {dropped} texts in {len(body)} bytes")
    return Reply(
        vectors=body[vectors_start:],
        queue_ms=queue_ms,
        inference_ms=inference_ms,
        state=ReplicaState(
            replica=welcome.replica,
            queued_tokens=queued_tokens,
            pace=pace,
            measured=welcome.measured,
            host=welcome.host,
        ),
        dropped=unpack(f"<{dropped}i", body[REPLY_HEAD.size : vectors_start]),
    )


def welcome_frame(welcome: Welcome) -> bytes:
    """A replica's first frame."""
    return frame(Kind.WELCOME, 0, _WELCOME.dump_json(welcome))


def read_welcome(body: bytes) -> Welcome:
    """What `welcome_frame` packed."""
    return _WELCOME.validate_json(body)
