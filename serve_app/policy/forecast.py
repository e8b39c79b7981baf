"""How long a variant would take for a request: the wait for its turn, then its own service.

A batch of n padded tokens takes `base + per_token * n` on an unshared core (the profile), and `pace`
times as long where other engines share the cores. What runs and what has an earlier turn goes first
(`turns.py`), on all cores side by side; those who come meanwhile and have an earlier turn lengthen the wait, by
what is let in; a request's own texts follow, in a batch that those who arrive during the wait will join:

    wait        = with_overtakers((rest of what runs + pace * work with an earlier turn) / cores)
    joiners     = pace * per_token * min(room in my last batch, rate * wait)
    told        = wait + pace * T(mine) + joiners + hop
    p50, p95    = told * exp(theta), each with a theta learned online: see `correction.py`
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import NamedTuple

from serve_app.manifest import Profile

# Where the correction is learned apart: by the wait, in full batches, and by the request's tokens.
LOAD_BIN_EDGES = (0.5, 1.0, 2.0, 4.0)
SIZE_BIN_EDGES = (32, 128, 512)
LOAD_BINS, SIZE_BINS = 2 + len(LOAD_BIN_EDGES), 1 + len(SIZE_BIN_EDGES)  # bin 0: idle


class Forecast(NamedTuple):
    """Milliseconds from now to the vectors in the router's hand, and the bin it is learned in."""

    wait_ms: float
    service_ms: float
    p95_ms: float
    bin: int = 0
    typical: float = 1.0  # median of what such forecasts came to / their sum
    place_ms: float = 0.0  # in the line, see `turns.py`

    @property
    def told_ms(self) -> float:
        """As the profile has it, before what was learned."""
        return self.wait_ms + self.service_ms

    @property
    def p50_ms(self) -> float:
        return self.told_ms * self.typical


def batches_ms(profile: Profile, tokens: float, *, texts: float = math.inf) -> float:
    """Time of `tokens` padded tokens in full batches and one rest; a text is never cut."""
    batches = min(math.ceil(tokens / profile.batch_tokens), texts)
    return batches * profile.base_ms + tokens * profile.per_token_ms


def service_of(
    fit: tuple[float, float, int],
    tokens: int,
    pace: float,
    joining: float = 0.0,
    texts: float = math.inf,
) -> float:
    """Milliseconds of the request's own batches, the hop not included.

    Args:
        fit: see `fit_of`.
        tokens: of the request.
        pace: how many times longer it takes among the engines that are busy now.
        joining: tokens that arrive during the wait: as many as have room join the last batch.
        texts: of the request; none is cut, so it has no more batches.
    """
    base_ms, per_token_ms, batch_tokens = fit
    batches = min(-(-tokens // batch_tokens), texts)
    alone_ms = pace * (batches * base_ms + tokens * per_token_ms)
    room = batches * batch_tokens - tokens
    if not joining or room <= 0:
        return alone_ms
    return alone_ms + pace * per_token_ms * (joining if joining < room else room)


def fit_of(profile: Profile) -> tuple[float, float, int]:
    """Milliseconds of a batch, and of a token more in it; tokens of a full one."""
    return profile.base_ms, profile.per_token_ms, profile.batch_tokens


def load_bin(batches: float) -> int:
    """Where the correction is learned, by the wait in full batches; 0 is for what starts at once."""
    return 1 + bisect_left(LOAD_BIN_EDGES, batches)


def size_bin(tokens: int) -> int:
    """Where the correction is learned, by the request's tokens."""
    return bisect_left(SIZE_BIN_EDGES, tokens)
