"""Frames survive any cut of the stream, and what is no frame is found out."""

from __future__ import annotations

import asyncio
import itertools
import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.calls import Call, Reply
from serve_app.manifest import GridCell, Profile
from serve_app.policy.replica_state import ReplicaState
from serve_app.wire import (
    Frame,
    FrameReader,
    Kind,
    NotOurProtocol,
    Welcome,
    call_frame,
    frame,
    notice_lost_hosts,
    read_call,
    read_reply,
    read_welcome,
    reply_frame,
    welcome_frame,
)

PROFILE = Profile(
    hardware="a CPU",
    device="cpu",
    threads=1,
    base_ms=1.5,
    per_token_ms=0.1,
    spread=1.1,
    batch_tokens=512,
    grid=(GridCell(texts=1, tokens=8, median_ms=2.3),),
    load_ms=10.0,
    resident_bytes=1,
)


@given(
    bodies=st.lists(st.binary(max_size=40), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 300), max_size=8),
)
def test_frames_come_out_of_a_stream_cut_anywhere(bodies: list[bytes], cuts: list[int]) -> None:
    """Whatever pieces the bytes arrive in, the frames are those that were sent, in order."""
    stream = b"".join(frame(Kind.CALL, i, body) for i, body in enumerate(bodies))
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    reader = FrameReader()
    found = [
        one for start, end in itertools.pairwise(edges) for one in reader.feed(stream[start:end])
    ]
    assert found == [Frame(Kind.CALL, i, body) for i, body in enumerate(bodies)]


def test_a_frame_that_claims_too_much_is_refused_before_it_is_kept() -> None:
    """Somebody who speaks another protocol cannot make the reader wait for gigabytes."""
    with pytest.raises(NotOurProtocol, match="bytes"):
        list(FrameReader(largest_bytes=64).feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"))


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=10),
    left_ms=st.floats(0, 1e6, width=32),
)
def test_a_call_arrives_as_it_left(lengths: list[int], left_ms: float) -> None:
    """Token ids, lengths and the time left are the same bytes on the other side."""
    texts = [np.arange(n, dtype=np.int32) for n in lengths]
    call = Call.of(texts, [left_ms] * len(texts))
    (found,) = FrameReader().feed(call_frame(7, call))
    assert (found.kind, found.call) == (Kind.CALL, 7)
    assert read_call(found.body) == call
    assert call.tokens == sum(lengths)


@pytest.mark.parametrize("broken", [b"", b"\x01", b"\x00\x00\x00\x00", b"\x01\x00\x00\x00" * 2])
def test_a_call_that_does_not_add_up_is_refused(broken: bytes) -> None:
    """A body cut short or too long is no call."""
    with pytest.raises(NotOurProtocol):
        read_call(broken)


@given(rows=st.integers(1, 5), dropped=st.sets(st.integers(0, 4)))
def test_a_reply_arrives_as_it_left(rows: int, dropped: set[int]) -> None:
    """Vectors, phase times, dropped texts and the replica's state, its own profile included."""
    state = ReplicaState(replica="r1", queued_tokens=12, pace=1.25, measured=PROFILE, host="h1")
    vectors = np.arange(rows * 3, dtype=np.float32).tobytes()
    reply = Reply(vectors, 1.5, 2.25, state, tuple(sorted(dropped)))
    (found,) = FrameReader().feed(reply_frame(9, reply))
    assert found.kind == Kind.REPLY
    assert read_reply(found.body, Welcome("r1", PROFILE, "h1")) == reply


@pytest.mark.parametrize("missing", [1, 8, 40])
def test_a_reply_cut_short_is_refused(missing: int) -> None:
    """One that ends within its head, or among the texts that it dropped."""
    state = ReplicaState(replica="r1", queued_tokens=12, pace=1.25, measured=None, host="h1")
    (found,) = FrameReader().feed(reply_frame(9, Reply(b"", 1.5, 2.25, state, (0, 1))))
    with pytest.raises(NotOurProtocol, match="bytes"):
        read_reply(found.body[:-missing], Welcome("r1", None, "h1"))


@pytest.mark.parametrize("measured", [None, PROFILE])
def test_a_welcome_names_the_replica_and_its_profile(measured: Profile | None) -> None:
    """A replica on other hardware brings the profile that it measured."""
    (found,) = FrameReader().feed(welcome_frame(Welcome("r1", measured, "h1")))
    assert read_welcome(found.body) == Welcome("r1", measured, "h1")


def test_a_vanished_host_is_noticed() -> None:
    """Both ends ask silent peers for a sign of life, and give up what is not confirmed."""
    with socket.socket() as sock:
        transport = asyncio.Transport({"socket": sock})
        notice_lost_hosts(transport)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
