"""What a router asks of a replica, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve_app.engines.base import TokenIds
from serve_app.policy.replica_state import ReplicaState


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
        lengths = np.fromiter(map(len, texts), dtype=np.int32, count=len(texts))
        left = np.full(len(texts), np.inf) if left_ms is None else left_ms
        return cls(
            ids=np.concatenate(texts).tobytes(),
            lengths=lengths.tobytes(),
            left_ms=np.asarray(left, dtype=np.float32).tobytes(),
        )

    @property
    def count(self) -> int:
        """Texts in the call."""
        return len(self.lengths) // np.dtype(np.int32).itemsize

    @property
    def tokens(self) -> int:
        """Tokens of all its texts."""
        return len(self.ids) // np.dtype(np.int32).itemsize

    def texts(self) -> list[TokenIds]:
        ids = np.frombuffer(self.ids, dtype=np.int32)
        ends = np.cumsum(np.frombuffer(self.lengths, dtype=np.int32))
        return np.split(ids, ends[:-1])

    def deadlines_s(self, *, arrived_s: float) -> list[float]:
        """When each text loses its worth, on the clock that says when the call arrived."""
        left_ms = np.frombuffer(self.left_ms, dtype=np.float32).astype(np.float64)
        deadlines_s: list[float] = (arrived_s + left_ms / 1000).tolist()
        return deadlines_s


@dataclass(frozen=True, slots=True)
class Reply:
    """What comes back: flat float32 vectors in the call's order, phase times, the replica's state."""

    vectors: bytes
    queue_ms: float  # from arrival at the replica to the first batch that holds a text of the call
    inference_ms: float  # from there to the end of the last such batch
    state: ReplicaState
    dropped: tuple[int, ...] = ()  # texts whose deadline passed here; their rows are no vectors
