"""An engine's threads that run a batch when the test says so, and calls to its replica."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np

from serve_app.calls import Call, Reply
from serve_app.engines.base import TokenIds, Vectors
from serve_app.replica import Replica
from tests.held_calls import DIMS, settle

BATCH_TOKENS = 64  # the artifact's


class HeldThread(Executor):
    """In the place of the engine's threads: holds each batch until the test lets it run."""

    def __init__(self) -> None:
        self.held: list[tuple[Future[Vectors], Callable[..., Vectors], list[TokenIds]]] = []

    def submit(self, embed: Any, texts: list[TokenIds]) -> Future[Any]:  # type: ignore[override]
        future: Future[Vectors] = Future()
        self.held.append((future, embed, texts))
        return future

    def lengths(self) -> list[list[int]]:
        """Tokens of the texts of each batch that is held."""
        return [[len(ids) for ids in texts] for _, _, texts in self.held]

    async def run_batch(self, position: int | None = None) -> list[list[int]]:
        """Run the only batch that is held, or one of several; its texts, as the engine got them."""
        await settle()
        assert position is not None or len(self.held) == 1
        future, embed, texts = self.held.pop(position or 0)
        try:
            future.set_result(embed(texts))
        except Exception as error:
            future.set_exception(error)
        await settle()
        return [ids.tolist() for ids in texts]


def texts_of(*lengths: int) -> list[TokenIds]:
    """Texts of these lengths, each with token ids of its own."""
    return [np.arange(10 * i, 10 * i + n, dtype=np.int32) for i, n in enumerate(lengths, 1)]


def start(replica: Replica, texts: Sequence[TokenIds]) -> asyncio.Task[Reply]:
    return asyncio.create_task(replica.embed(Call.of(texts)))


def vectors_in(reply: Reply) -> Vectors:
    return np.frombuffer(reply.vectors, dtype=np.float32).reshape(-1, DIMS)
