"""What travels from a replica to its routers with every reply."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.manifest import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """What a replica says of itself with every reply."""

    replica: str
    queued_tokens: int
    pace: float = 1.0  # time of its last batch / what the profile says: how others slow it
    measured: Profile | None = None  # its own, where the manifest's does not fit its hardware
    host: str = ""  # whose cores it shares
