"""What a running server of ours says of itself: what it serves, and what it would admit."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from loadtests.errors import NoServer
from loadtests.server import check, headers

API_KEY = "LOADTEST_API_KEY"
PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A deployed variant, as `/v1/variants` tells of it."""

    variant: str
    fidelity: float
    cost_ms: float  # per token, in full batches of one replica
    replicas: int
    queued_tokens: int = 0
    inflight_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What would become of a request now."""

    admitted: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class Server:
    """A server by its URL; the API key, if any, is the environment's."""

    host: str
    api_key: str | None = field(default_factory=lambda: os.environ.get(API_KEY), repr=False)

    def check(self) -> None:
        """Raise NoServer unless it is there, ready, lets us in, and serves variants."""
        check(self.host, self.api_key)
        if not self.variants():
            raise NoServer(f"--host={self.host}: /v1/variants lists no variant")

    def variants(self) -> list[Served]:
        """List what is deployed, best fidelity first; raises NoServer."""
        try:
            served = [_served(v) for v in self._json("/v1/variants")["variants"]]
        except (KeyError, TypeError) as error:
            raise NoServer(f"--host={self.host}: /v1/variants has no field {error}") from error
        return sorted(served, key=lambda v: (-v.fidelity, v.cost_ms))

    def route(self, body: bytes) -> Route:
        """Ask for the decision on a request; nothing is computed. Raises NoServer."""
        answer = self._json("/v1/route", body)
        return Route(admitted=bool(answer["admitted"]), tokens=int(answer["tokens"]))

    def _json(self, path: str, body: bytes | None = None) -> Any:
        to = {"Content-Type": "application/json"} | headers(self.api_key)
        request = urllib.request.Request(self.host.rstrip("/") + path, data=body, headers=to)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise NoServer(f"--host={self.host}: {path} answers {error.code}") from error
        except (OSError, ValueError) as error:
            raise NoServer(f"--host={self.host}: {path} does not answer: {error}") from error


def _served(variant: dict[str, Any]) -> Served:
    return Served(
        variant=variant["variant"],
        fidelity=variant["fidelity"],
        cost_ms=variant["profile"]["cost_ms"],
        replicas=variant["replicas"],
        queued_tokens=variant["queued_tokens"],
        inflight_tokens=variant.get("inflight_tokens", 0),
    )
