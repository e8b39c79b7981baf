"""Batches that fit into a GPU's memory, and what becomes of one that does not.

A batch's activations take `fixed + per token` bytes, found from two measured batches; the limit that
follows keeps legal requests from ever asking for too much. Should memory run out all the same, because
somebody else took it, the batch is run in halves and the limit comes down: the replica stays.

PyTorch is imported only where a GPU is asked.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serve_app.engines.base import Engine, TokenIds, Vectors

log = logging.getLogger(__name__)

SHARE_USED = 0.8  # of what is free: the rest is for fragments, kernels' workspaces and neighbours
MEASURED_TOKENS = (2048, 8192)
SIGNS = ("out of memory", "failed to allocate memory")  # PyTorch's and ONNX Runtime's words


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Memory that a batch takes beyond the weights, by its tokens."""

    fixed_bytes: float
    bytes_per_token: float

    @classmethod
    def fit(cls, small: tuple[int, int], large: tuple[int, int]) -> Activations:
        """The line through two measurements, (tokens, bytes) each, the larger batch second.

        Where the larger batch took no more, all of what it took is put down to its tokens.
        """
        (few, few_bytes), (many, many_bytes) = small, large
        slope = (many_bytes - few_bytes) / (many - few)
        fixed_bytes = few_bytes - slope * few
        if slope <= 0 or fixed_bytes < 0:
            return cls(
                fixed_bytes=0.0, bytes_per_token=max(many_bytes / many, few_bytes / few, 1.0)
            )
        return cls(fixed_bytes=fixed_bytes, bytes_per_token=slope)

    def bytes_of(self, tokens: int) -> float:
        return self.fixed_bytes + self.bytes_per_token * tokens

    def most_tokens(self, free_bytes: float, *, least: int) -> int:
        """Tokens of the largest batch that fits into a share of free memory; `least` at least."""
        room = SHARE_USED * free_bytes - self.fixed_bytes
        return max(least, int(room / self.bytes_per_token))


class Meter(Protocol):
    """A device's memory."""

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Most that was allocated during the work beyond what was before it."""
        ...

    def free_bytes(self) -> int:
        """What this process may still allocate."""
        ...


class CudaMeter:
    """The memory of the current GPU, as PyTorch allocates it."""

    def peak_bytes(self, work: Callable[[], object]) -> int:
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def free_bytes(self) -> int:
        import torch

        free, total = torch.cuda.mem_get_info()
        allocated = torch.cuda.memory_allocated()
        cached = torch.cuda.memory_reserved() - allocated
        share = torch.cuda.get_per_process_memory_fraction()
        return min(free + cached, int(share * total) - allocated)


def measure_activations(engine: Engine, meter: Meter, *, text_tokens: int) -> Activations:
    """What batches of an engine take, from two of them.

    Args:
        engine: ready.
        meter: of its device.
        text_tokens: of each text.
    """
    found = []
    for tokens in MEASURED_TOKENS:
        texts = [np.ones(text_tokens, dtype=np.int32)] * max(1, tokens // text_tokens)
        engine.embed(texts)  # the first run allocates what stays
        peak = meter.peak_bytes(lambda texts=texts: engine.embed(texts))  # type: ignore[misc]
        found.append((len(texts) * text_tokens, peak))
    return Activations.fit(*found)


def take_share(share: float) -> None:
    """Keep this process within a share of the GPU's memory, as far as PyTorch allocates it.

    ONNX Runtime allocates its own, which nothing bounds.
    """
    try:
        import torch
    except ImportError:
        return
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


class HalvingEngine:
    """Runs in halves what does not fit, and from then on cuts before it is tried."""

    def __init__(self, engine: Engine, *, release: Callable[[], None]) -> None:
        """Wrap an engine.

        Args:
            engine: may raise when memory runs out; is as good as before when it has.
            release: gives back what caches hold.
        """
        self._engine = engine
        self._release = release
        self._most_tokens: int | None = None  # padded; None: nothing was too large yet

    @property
    def most_tokens(self) -> int | None:
        """Padded tokens that batches are cut to, once one did not fit."""
        return self._most_tokens

    def embed(self, texts: Sequence[TokenIds]) -> Vectors:
        waiting, done = [texts], []
        while waiting:
            batch = waiting.pop()
            if self._is_too_large(batch):
                waiting += _halves(batch)
            elif (vectors := self._tried(batch)) is None:
                self._most_tokens = _padded(batch) // 2
                self._release()  # here, where no traceback holds the batch's memory any more
                log.warning("out of memory with %d texts: running halves", len(batch))
                waiting += _halves(batch)
            else:
                done.append(vectors)
        return done[0] if len(done) == 1 else np.concatenate(done)

    def _is_too_large(self, batch: Sequence[TokenIds]) -> bool:
        over = self._most_tokens is not None and _padded(batch) > self._most_tokens
        return over and len(batch) > 1

    def _tried(self, batch: Sequence[TokenIds]) -> Vectors | None:
        """None when memory ran out; a text that does not fit alone is the caller's."""
        try:
            return self._engine.embed(batch)
        except Exception as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
            return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether a runtime says so: each has a class of its own, and they have only words in common."""
    return any(sign in str(error).lower() for sign in SIGNS)


def release_cached() -> None:
    """Give the GPU what PyTorch holds back for its next allocations; others have no such cache."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _padded(batch: Sequence[TokenIds]) -> int:
    return len(batch) * max(map(len, batch))


def _halves(batch: Sequence[TokenIds]) -> tuple[Sequence[TokenIds], Sequence[TokenIds]]:
    """The second half first: the last of a list is taken next."""
    half = len(batch) // 2
    return batch[half:], batch[:half]
