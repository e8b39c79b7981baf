"""What a brain is told before any request."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.manifest import Profile
from serve_app.policy.hint import Hint


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFacts:
    """What is known of a variant before any request."""

    variant: str
    fidelity: float
    profile: Profile
    streams: int = 1  # batches that a replica runs side by side while cores are idle, at most
    on_cores: bool = True  # which it shares with others; else on a device of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a brain is told; the switches are for the simulator's ablations."""

    default: Hint  # of requests that bring none
    cores: float  # of a host that are this router's to fill; as many as a batch takes count as one
    max_wait_ms: float = 30_000.0
    reserve_ms: float = 2.0
    corrects: bool = True
    sees_joiners: bool = True
    sheds: bool = True  # brownout, fairness, and refusing what cannot make it
