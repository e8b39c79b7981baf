"""What a router asks of a replica, and what comes back.

Most calls carry a text or a few: plain numbers are packed by `struct`, as numpy's calls cost several times what
such a call takes otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from struct import calcsize, pack, unpack

import numpy as np

from serve_app.engines.base import TokenIds
from serve_app.policy.replica_state import ReplicaState

NUMBER_BYTES = calcsize("<i")  # of every int32 and float32


@dataclass(frozen=True, slots=True)
class Call:
    """What crosses from router to replica: flat int32 token ids, and of each text two numbers.

    Hosts' clocks differ, so what travels is the time left, not a time.
    """

    ids: bytes
    lengths: bytes  # int32, tokens
    left_ms: bytes  # float32, until nobody wants its vector; inf where someone always will

    @classmethod
    def of(cls, texts: Sequence[TokenIds], left_ms: Sequence[float] | None = None) -> Call:
        """Pack texts that have so many milliseconds left; None: all have for ever."""
        count = len(texts)
        left = [math.inf] * count if left_ms is None else left_ms
        return cls(
            ids=b"".join([ids.tobytes() for ids in texts]),
            lengths=pack(f"<{count}i", *map(len, texts)),
            left_ms=pack(f"<{count}f", *left),
        )

    @property
    def count(self) -> int:
        """Texts in the call."""
        return len(self.lengths) // NUMBER_BYTES

    @property
    def tokens(self) -> int:
        """Tokens of all its texts."""
        return len(self.ids) // NUMBER_BYTES

    def texts(self) -> list[TokenIds]:
        ids, texts, start = np.frombuffer(self.ids, dtype=np.int32), [], 0
        for length in unpack(f"<{self.count}i", self.lengths):
            texts.append(ids[start : start + length])
            start += length
        return texts

    def deadlines_s(self, *, arrived_s: float) -> list[float]:
        """When each text loses its worth, on the clock that says when the call arrived."""
        return [arrived_s + left / 1000 for left in unpack(f"<{self.count}f", self.left_ms)]


@dataclass(frozen=True, slots=True)
class Reply:
    """What comes back: flat float32 vectors in the call's order, phase times, the replica's state."""

    vectors: bytes
    queue_ms: float  # from arrival at the replica to the first batch that holds a text of the call
    inference_ms: float  # from there to the end of the last such batch
    state: ReplicaState
    dropped: tuple[int, ...] = ()  # texts whose deadline passed here; their rows are no vectors
