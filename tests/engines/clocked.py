"""An engine whose time is the test's."""

from collections.abc import Sequence

from serve_app.engines.base import TokenIds, Vectors
from serve_app.engines.fake_engine import FakeEngine


class Clocked:
    """The fake engine on a clock of its own: each batch takes base + per token."""

    def __init__(self, *, base_ms: float, per_token_ms: float, first_ms: float = 0.0) -> None:
        self._fake = FakeEngine(dims=4)
        self._base_ms, self._per_token_ms = base_ms, per_token_ms
        self._first_ms = first_ms
        self._shapes: set[tuple[int, int]] = set()
        self.now_ms = 0.0

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        shape = (len(texts), max(map(len, texts)))
        self.now_ms += self._base_ms + self._per_token_ms * shape[0] * shape[1]
        self.now_ms += 0.0 if shape in self._shapes else self._first_ms
        self._shapes.add(shape)
        return self._fake.embed(texts)

    def now_s(self) -> float:
        return self.now_ms / 1000
