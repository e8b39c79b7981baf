"""How long a variant would take for a request: the wait for the tokens ahead, then its own service.

A batch of n padded tokens takes `base + per_token * n` (the profile). The tokens ahead are shared by
the variant's replicas and run in batches of `batch_tokens`; a request's own texts follow.
"""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.manifest import Profile
from serve_app.policy.load import Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Milliseconds from now to the vectors in the router's hand."""

    wait_ms: float
    service_ms: float
    p95_ms: float

    @property
    def p50_ms(self) -> float:
        return self.wait_ms + self.service_ms


def batches_ms(profile: Profile, tokens: float) -> float:
    """Time of `tokens` padded tokens in full batches and one rest."""
    full, rest = divmod(tokens, profile.batch_tokens)
    batches = full + (1 if rest else 0)
    return batches * profile.base_ms + tokens * profile.per_token_ms


def forecast(profile: Profile, load: Load, *, tokens: int) -> Forecast:
    """The forecast of one variant for a request of `tokens` tokens.

    The spread of the profile covers the engine only; the hop's own spread is taken as large as the
    hop, so that p95 counts it twice.
    """
    wait_ms = batches_ms(profile, load.inflight_tokens / load.replicas)
    engine_ms = batches_ms(profile, tokens)
    return Forecast(
        wait_ms=wait_ms,
        service_ms=engine_ms + load.hop_ms,
        p95_ms=(wait_ms + engine_ms) * profile.spread + 2 * load.hop_ms,
    )
