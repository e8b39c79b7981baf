"""Which texts to run together: padding costs more than any precision gains, so lengths decide.

Batches hold texts of like length up to a budget of padded tokens (count × longest). The first in line
is always in the next batch, so none starves; nothing waits for a batch to fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from serve_app.manifest import Profile

BASES = 6.0  # a batch of so many times its own cost spends five sixths of its time on tokens
LEAST_BATCH_MS = 8.0  # a call costs its router and replica something too
MOST_BATCH_MS = 25.0  # beyond, those who wait for the next batch lose more than this one gains
FEWEST_TOKENS = 16
CALLS_EACH = 2  # on their way to a replica of one stream, at most


def next_batch(lengths: Sequence[int], batch_tokens: int) -> list[int]:
    """The positions of the next batch, shortest text first.

    Args:
        lengths: tokens of each waiting text, in the order of their turns; one at least, each above 0.
        batch_tokens: the most padded tokens, unless one text alone exceeds them.

    Starts from the first text and takes the neighbours in length order that waste least, shorter
    ones first: they do not make the batch wider.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    start = order.index(0)
    first, last = start, start + 1
    width = lengths[0]
    while first > 0 and (last - first + 1) * width <= batch_tokens:
        first -= 1
    while last < len(order):
        wider = lengths[order[last]]
        if (last - first + 1) * wider > batch_tokens:
            break
        last += 1
    return order[first:last]


def take_tokens(lengths: Sequence[int], call_tokens: int) -> int:
    """How many waiting texts, oldest first, one call carries: up to `call_tokens`, one at least."""
    total = 0
    for count, length in enumerate(lengths):
        total += length
        if total > call_tokens:
            return max(1, count)
    return len(lengths)


def short_batches(profile: Profile) -> Profile:
    """The profile with batches no longer than pays, where those it wants take longer.

    Throughput on a CPU gains a few per cent by larger batches, and whoever comes meanwhile waits for their
    end. In the simulator, where a batch costs 5 ms beside its tokens, 25 ms at most lost half as many
    answers as no limit; where it costs 0.8 ms, 8 ms lost a tenth as many as 25.
    """
    most_ms = min(max(BASES * profile.base_ms, LEAST_BATCH_MS), MOST_BATCH_MS)
    within = int((most_ms - profile.base_ms) / profile.per_token_ms)
    if within >= profile.batch_tokens:
        return profile
    return replace(profile, batch_tokens=max(within, FEWEST_TOKENS))


def may_leave(calls: int, *, replicas: int, streams: int, busy: int, cores: float) -> bool:
    """Whether one more call may go to the replicas of a variant.

    While as many batches run as there are cores, none: it would slow the others, and whoever comes next could not go
    before it any more. While cores are idle each replica may have as many calls as it runs side by side; one that
    runs a single batch may have another at its door, so that its engine need not wait for it.

    Args:
        calls: on their way already.
        replicas: that share them.
        streams: batches that each runs side by side.
        busy: batches of all variants on these cores, as far as a router knows.
        cores: that they share; inf for a device of the variant's own.
    """
    return busy < cores and calls < replicas * max(streams, CALLS_EACH)
