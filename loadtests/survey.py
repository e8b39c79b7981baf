"""Before any load: what the mix asks of an idle server, and how much of it the server would admit."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.served import Served, Server
from loadtests.workload import Workload

ASKED = 200
RAMP_TOP = 2.5  # of what the cheapest variant's profile says it could sustain


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A sample of the mix, as `/v1/route` judges it on the idle server."""

    tokens_per_request: float
    feasible: dict[str, float]  # by hint class: the share that is admitted


def survey(server: Server, workload: Workload, *, seed: int) -> Survey:
    """Ask for the decisions on the mix's first requests; nothing is computed."""
    asked: Counter[str] = Counter()
    admitted: Counter[str] = Counter()
    tokens = 0
    for request in itertools.islice(workload.requests(seed), ASKED):
        route = server.route(request.body)
        asked[request.hint_class.name] += 1
        admitted[request.hint_class.name] += route.admitted
        tokens += route.tokens
    return Survey(
        tokens_per_request=tokens / ASKED,
        feasible={name: admitted[name] / count for name, count in sorted(asked.items())},
    )


def ramp_top(served: Sequence[Served], tokens_per_request: float) -> float:
    """Requests per second that should be more than the server can take, by its own profiles."""
    best = max(max(v.replicas, 1) / v.cost_ms for v in served)  # tokens per millisecond
    return RAMP_TOP * 1000 * best / max(tokens_per_request, 1)
