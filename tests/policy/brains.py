"""A brain of four variants, and what can be done to it."""

import random
from contextlib import ExitStack
from dataclasses import replace

from serve_app.policy.brain import Brain, Options, VariantFacts
from serve_app.policy.brownout import FEWEST
from serve_app.policy.hint import Hint, Quality
from serve_app.policy.routing import Decision
from tests.policy.profiles import profile_of

FIDELITIES = {"fp32": 1.0, "bf16": 0.9995, "int8": 0.985, "int4": 0.96}
PER_TOKEN_MS = {"fp32": 0.4, "bf16": 0.2, "int8": 0.1, "int4": 0.05}
FACTS = [
    VariantFacts(variant=v, fidelity=f, profile=profile_of(1.0, PER_TOKEN_MS[v], 1.2))
    for v, f in FIDELITIES.items()
]
DEFAULT = Hint(budget_ms=1000, quality=Quality(floor=0.99))
NOW_S = 100.0


def brain_of_four(*, streams: int = 1, cores: float = 2, **options: bool) -> Brain:
    """Four variants that are up, on two cores unless told otherwise."""
    draw = random.Random(0).random  # noqa: S311
    facts = [replace(one, streams=streams) for one in FACTS]
    found = Brain(facts, options=Options(default=DEFAULT, cores=cores, **options), draw=draw)
    for variant in FIDELITIES:
        found.set_ready(variant)
    return found


def ask(
    brain: Brain, hint: Hint, *, tokens: int = 20, client: str = "a", now_s: float = NOW_S
) -> Decision:
    """A decision that is remembered."""
    return brain.decide(hint, tokens=tokens, elapsed_ms=0.0, client=client, now_s=now_s)


def name_of(decision: Decision) -> str | None:
    """The chosen variant."""
    return decision.chosen and decision.chosen.variant


def brown_out(brain: Brain, level: int) -> None:
    """Misses until that level is reached, the last of them now."""
    now_s = NOW_S - 3.0 * level
    while brain.brownout.level < level:
        now_s += 1 / FEWEST
        brain.brownout.tell(missed=True, now_s=now_s)


def queue(stack: ExitStack, brain: Brain, variant: str, tokens: int) -> None:
    """Tokens of others in flight at a variant, whose engine has just begun."""
    load = brain.load(variant)
    stack.enter_context(load.hold(tokens))
    stack.enter_context(load.call(tokens, now_s=NOW_S))
