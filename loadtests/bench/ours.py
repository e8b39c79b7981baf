"""Our own server as a subject: as `make serve` runs it, behind Serve's proxies, and without Ray."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from loadtests.bench.samples import Row
from loadtests.bench.served import ServerSubject
from loadtests.bench.workloads import Ask
from loadtests.local_server import build_missing
from serve_app.registry import Ladder, Rung

OURS, PROXY, HANDLES, STOCK, BARE = "ours", "proxy", "handles", "stock", "bare"
FLOAT = "float"
# No budget, so that nothing is refused: what routing costs, not what it promises.
ROUTED = Ask({"quality": "balanced"})
# Serve's own defaults for all that `serve_app.environment` sets to be fast.
STOCK_ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "0",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "1",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "100",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.1",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    "RAY_worker_niceness": "15",
}
LEAST_BEST, LEAST_CHEAP = 0.999, 0.98  # fidelities below which a rung is not compared with peers


def pinned(variant: str) -> Ask:
    """All by one variant."""
    return Ask({"variant": variant})


def ours(artifacts: Path, ladder: Ladder) -> ServerSubject:
    """The server as it is: pinned to each variant, routed, and once with vectors as numbers."""
    names = names_of(ladder)
    asks = {Row(OURS, name): pinned(name) for name in names}
    asks[Row(OURS, None, "routed")] = ROUTED
    cheap = cheapest(ladder, LEAST_CHEAP).manifest.variant
    asks[Row(OURS, cheap, FLOAT)] = Ask({"variant": cheap}, encoding="float")
    return ServerSubject(
        name=OURS,
        command=lambda port: _serve(artifacts, names, port),
        asks=asks,
        ready_path="/ready",
        prepare=lambda: build_missing(artifacts),
        looks_idle=True,
    )


def compared_with_peers(artifacts: Path, ladder: Ladder) -> ServerSubject:
    """The server with its rungs that peers are held against."""
    chosen = (best_rung(ladder), cheapest(ladder, LEAST_CHEAP))
    asks = {Row(OURS, rung.manifest.variant): pinned(rung.manifest.variant) for rung in chosen}
    names = names_of(ladder)
    return ServerSubject(
        name=OURS,
        command=lambda port: _serve(artifacts, names, port),
        asks=asks,
        ready_path="/ready",
    )


def proxy(artifacts: Path, ladder: Ladder) -> ServerSubject:
    """The server behind Serve's HAProxy, as on a cluster, cheapest variant."""
    return _cheapest_only(PROXY, artifacts, ladder, "--proxy")


def handles(artifacts: Path, ladder: Ladder) -> ServerSubject:
    """The same with calls over Serve's handles instead of connections of its own."""
    return _cheapest_only(HANDLES, artifacts, ladder, "--proxy", "--calls", "handle")


def _cheapest_only(name: str, artifacts: Path, ladder: Ladder, *flags: str) -> ServerSubject:
    names = names_of(ladder)
    cheap = cheapest(ladder, LEAST_CHEAP).manifest.variant
    return ServerSubject(
        name=name,
        command=lambda port: _serve(artifacts, names, port, *flags),
        asks={Row(name, cheap): pinned(cheap)},
        ready_path="/ready",
    )


def stock(artifacts: Path, ladder: Ladder) -> ServerSubject:
    """The same application on Serve's defaults and handles, pinned to the cheapest variant, and routed."""
    names = names_of(ladder)
    cheap = cheapest(ladder, LEAST_CHEAP).manifest.variant
    return ServerSubject(
        name=STOCK,
        command=lambda port: _serve(artifacts, names, port, "--proxy", "--calls", "handle"),
        asks={Row(STOCK, cheap): pinned(cheap), Row(STOCK, None, "routed"): ROUTED},
        ready_path="/ready",
        environment=STOCK_ENVIRONMENT,
        looks_idle=True,
    )


def bare(artifacts: Path, ladder: Ladder) -> ServerSubject:
    """Uvicorn, the same engines and batchers, one process."""
    names = names_of(ladder)
    return ServerSubject(
        name=BARE,
        command=lambda port: [
            *(sys.executable, "-m", "loadtests.bench.bare", "--artifacts", str(artifacts)),
            *("--variants", ",".join(names), "--port", str(port)),
        ],
        asks={Row(BARE, name): pinned(name) for name in names},
        ready_path="/ready",
    )


def names_of(ladder: Ladder) -> list[str]:
    """The variants, best fidelity first."""
    return [rung.manifest.variant for rung in ladder.rungs]


def best_rung(ladder: Ladder) -> Rung:
    """What is compared with exact peers: the cheapest rung within a thousandth of FP32."""
    return cheapest(ladder, LEAST_BEST)


def cheapest(ladder: Ladder, fidelity: float) -> Rung:
    """The rung of least cost at this fidelity or above; of none that reaches it, the best."""
    enough = [r for r in ladder.rungs if r.manifest.fidelity.p1 >= fidelity] or ladder.rungs[:1]
    return min(enough, key=lambda r: r.manifest.profile.cost_ms)


def _serve(artifacts: Path, names: Sequence[str], port: int, *flags: str) -> Sequence[str]:
    return [
        *(sys.executable, "-m", "serve_app", "--artifacts", str(artifacts)),
        *("--variants", ",".join(names), "--port", str(port), *flags),
    ]
