"""What a running server of ours says of itself: what it serves, and what it would admit."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from loadtests.errors import NoServer
from loadtests.server import check, headers

API_KEY = "LOADTEST_API_KEY"
ROUTE = "/v1/route"
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
        """Ask for the decision on one request; nothing is computed. Raises NoServer."""
        with self.asking() as ask:
            return ask(body)

    @contextmanager
    def asking(self) -> Iterator[Callable[[bytes], Route]]:
        """Give a function that asks for decisions over one connection, as `route` does."""
        url = urlsplit(self.host)
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = kind(url.netloc, timeout=PATIENCE_S)
        path = url.path.rstrip("/") + ROUTE
        to = {"Content-Type": "application/json"} | headers(self.api_key)

        def ask(body: bytes) -> Route:
            try:
                connection.request("POST", path, body, to)
                answer = connection.getresponse()
                status, content = answer.status, answer.read()
                if status != HTTPStatus.OK:
                    text = json.loads(body)["input"]
                    raise NoServer(f"--host={self.host}: {ROUTE} answers {status} to {text!r:.60}")
                given = json.loads(content)
                return Route(admitted=bool(given["admitted"]), tokens=int(given["tokens"]))
            except (OSError, http.client.HTTPException, ValueError) as error:
                why = f"{ROUTE} does not answer: {error}"
                raise NoServer(f"--host={self.host}: {why}") from error
            except (KeyError, TypeError) as error:
                raise NoServer(f"--host={self.host}: {ROUTE} has no field {error}") from error

        try:
            yield ask
        finally:
            connection.close()

    def _json(self, path: str) -> Any:
        request = urllib.request.Request(  # noqa: S310
            self.host.rstrip("/") + path, headers=headers(self.api_key)
        )
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
