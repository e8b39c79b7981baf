"""How long a variant would take for a request: the wait for the tokens ahead, then its own service.

A batch of n padded tokens takes `base + per_token * n` on an unshared core (the profile), and `pace`
times as long where other engines share the cores. The tokens ahead run in batches of `batch_tokens`;
a request's own texts follow, in a batch that those who arrive during the wait will join:

    ahead, rest = full batches and one rest
    wait        = pace * T(ahead) + gaps - what the running batch has already had
    joiners     = pace * per_token * min(room in my last batch, rate * wait)
    told        = wait + pace * T(mine) + joiners + hop
    p50, p95    = told * exp(theta), each with a theta learned online: see `correction.py`
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import NamedTuple

from serve_app.manifest import Profile

# Where the correction is learned apart: by what is ahead, in batches, and by the request's tokens.
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


def wait_of(
    fit: tuple[float, float, int],
    ahead: float,
    running_ms: float,
    pace: float,
    gap_ms: float = 0.0,
) -> float:
    """Milliseconds until the tokens ahead are done.

    Args:
        fit: see `fit_of`.
        ahead: tokens that go first; see `VariantLoad.ahead`.
        running_ms: how long the batch in the engine has run.
        pace: how many times longer it takes among the engines that are busy now.
        gap_ms: what passes between two batches, where the next is sent when one has come back.
    """
    base_ms, per_token_ms, batch_tokens = fit
    first = ahead if ahead < batch_tokens else batch_tokens  # tokens in the engine
    first_ms = pace * (base_ms + per_token_ms * first) + gap_ms
    batches = -(-ahead // batch_tokens)
    wait_ms = pace * (batches * base_ms + ahead * per_token_ms) + batches * gap_ms
    wait_ms -= running_ms if running_ms < first_ms else first_ms
    # Below 0 where nothing is ahead: a call whose requests have all gone is still on its way.
    return wait_ms if wait_ms > 0.0 else 0.0


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


def load_bin(ahead: float | None, batch_tokens: int) -> int:
    """Where the correction is learned, by what is ahead; None is an idle replica."""
    return 0 if ahead is None else 1 + bisect_left(LOAD_BIN_EDGES, ahead / batch_tokens)


def size_bin(tokens: int) -> int:
    """Where the correction is learned, by the request's tokens."""
    return bisect_left(SIZE_BIN_EDGES, tokens)
