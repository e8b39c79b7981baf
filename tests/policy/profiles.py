"""Profiles by hand."""

from serve_app.manifest import Profile


def profile_of(
    base_ms: float = 2.0, per_token_ms: float = 0.5, spread: float = 1.5, batch_tokens: int = 64
) -> Profile:
    """What a replica was measured to take on an unshared core."""
    return Profile(
        hardware="a test",
        device="cpu",
        threads=1,
        base_ms=base_ms,
        per_token_ms=per_token_ms,
        spread=spread,
        batch_tokens=batch_tokens,
        grid=(),
        load_ms=0.0,
        resident_bytes=0,
    )
