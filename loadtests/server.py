"""What must be known of a server before load is put on it: does it answer, and what does it serve."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http import HTTPStatus
from typing import Any

from loadtests.errors import NoServer

TIMEOUT_S = 10.0
SHUT_OUT = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


def check(host: str, api_key: str | None = None) -> None:
    """Raise NoServer unless the host answers, is ready, and lets us in.

    Any server with OpenAI's routes will do, so a route that is missing is no trouble.
    """
    if not host.startswith(("http://", "https://")):
        raise NoServer(f"--host={host}: not a URL that begins with http:// or https://")
    if _status(host, "/ready", api_key) == HTTPStatus.SERVICE_UNAVAILABLE:
        raise NoServer(f"--host={host}: the server is not ready yet; try again when /ready says so")
    status = _status(host, "/v1/models", api_key)
    if status in SHUT_OUT:
        why = "refuses the key" if api_key else "wants a key: set LOADTEST_API_KEY"
        raise NoServer(f"--host={host}: the server answers {status} and {why}")


def variants(host: str, api_key: str | None = None) -> list[dict[str, Any]]:
    """List what `/v1/variants` says is served; empty for a server without that route."""
    try:
        with _open(host, "/v1/variants", api_key) as answer:
            served: list[dict[str, Any]] = json.load(answer)["variants"]
            return served
    except (OSError, ValueError, KeyError, TypeError):
        return []


def cheapest(served: list[dict[str, Any]]) -> str | None:
    """Name the variant that costs least per token; None where no cost is told."""
    costs = {
        str(variant["variant"]): float(variant["profile"]["cost_ms"])
        for variant in served
        if "cost_ms" in (variant.get("profile") or {})
    }
    return min(costs, key=costs.__getitem__, default=None)


def headers(api_key: str | None) -> dict[str, str]:
    """Headers that let us in."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def _status(host: str, path: str, api_key: str | None) -> int:
    try:
        with _open(host, path, api_key) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise NoServer(f"--host={host}: nothing answers there: {why}") from None


def _open(host: str, path: str, api_key: str | None) -> Any:
    request = urllib.request.Request(host.rstrip("/") + path, headers=headers(api_key))  # noqa: S310
    return urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
