"""Small machines to simulate by hand."""

from dataclasses import replace

from loadtests.sim_types import Fit, Machine, SimRequest
from serve_app.policy.brain import VariantFacts
from tests.policy.profiles import profile_of


def facts(
    variant: str = "only",
    *,
    fidelity: float = 1.0,
    base_ms: float = 2.0,
    per_token_ms: float = 0.1,
    spread: float = 1.0,
    batch_tokens: int = 200,
) -> VariantFacts:
    """A variant; with a spread of 1 its batches have no noise."""
    profile = replace(profile_of(base_ms, per_token_ms, spread, batch_tokens), hardware="by hand")
    return VariantFacts(variant=variant, fidelity=fidelity, profile=profile)


LADDER = (
    facts("best", fidelity=1.0, per_token_ms=0.1, spread=1.2),
    facts("middle", fidelity=0.999, per_token_ms=0.06, spread=1.2),
    facts("cheap", fidelity=0.99, per_token_ms=0.03, spread=1.2),
)
MACHINE = Machine(
    cores=2, variants=LADDER, router_ms=0.2, call_ms=0.5, replica_call_ms=0.2, hop_ms=0.2
)
# Its engines slow each other, and its router has warm and cold hours.
SLOW = replace(
    MACHINE,
    together_pace=1.4,
    router_ms_per_token=0.003,
    warm_share=0.3,
    served={"best": Fit(base_ms=3.0, per_token_ms=0.12, spread=1.3)},
)


def request(
    number: int, arrived_s: float, *, tokens: int = 50, budget_ms: float = 1000.0
) -> SimRequest:
    """One request of the only client."""
    return SimRequest(
        number=number, arrived_s=arrived_s, tokens=tokens, budget_ms=budget_ms, client="a"
    )
