"""Candidates by hand."""

from serve_app.policy.forecast import Forecast
from serve_app.policy.routing import Candidate


def candidate(  # noqa: PLR0913
    variant: str,
    fidelity: float,
    cost: float,
    *,
    service_ms: float,
    wait_ms: float = 0.0,
    spread: float = 1.2,
    cold: bool = False,
    price: float = 0.0,
) -> Candidate:
    """A variant; its price is of all the request's tokens."""
    p95_ms = (wait_ms + service_ms) * spread
    found = Forecast(wait_ms=wait_ms, service_ms=service_ms, p95_ms=p95_ms)
    return Candidate(variant, fidelity, cost, found, cold, price)
