"""One request over HTTP, and what came of it, at as little cost to this process as can be.

What a client spends on an answer is time that it cannot spend on load: variant and fidelity are
read from the answer's headers, and the vectors are received but not parsed.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import gevent
from geventhttpclient import HTTPClient

from loadtests.records import NO_ANSWER, OK, Row
from loadtests.server import headers
from loadtests.workload import Request

MOST_AT_ONCE = 4096
READ_BYTES = 1 << 16
ERROR_CHARS = 200
JSON_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}
EPOCH_S = time.time() - time.perf_counter()  # once: a clock that is set must not bend latencies


def now_s() -> float:
    """Seconds since the epoch, on a clock that only goes forward."""
    return EPOCH_S + time.perf_counter()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; a status of 0 means no HTTP answer."""

    status: int
    variant: str
    fidelity: float | None
    size_bytes: int
    error: str


class Sender:
    """Connections to one server, kept alive and used again, newest first."""

    def __init__(
        self, host: str, *, api_key: str | None, timeout_s: float, at_once: int = MOST_AT_ONCE
    ) -> None:
        self._path = f"{urlsplit(host).path.rstrip('/')}/v1/embeddings"
        self._timeout_s = timeout_s
        self._client = HTTPClient.from_url(
            host,
            headers=JSON_HEADERS | headers(api_key),
            concurrency=at_once,
            block_size=READ_BYTES,
            connection_timeout=timeout_s,
            network_timeout=timeout_s,
        )

    def send(
        self, request: Request, *, phase: str, intended_s: float | None = None
    ) -> tuple[Row, int]:
        """Send now and wait for the answer: its row, and its size in bytes.

        Latency counts from when the request should have been sent; without that, from now.
        """
        sent_s = now_s()
        due_s = sent_s if intended_s is None else intended_s
        answer = self._exchange(request.body)
        finished_s = now_s()
        latency_ms = (finished_s - due_s) * 1000
        asked = request.hint_class
        budget_ms = asked.budget_ms
        row = Row(
            phase=phase,
            hint_class=asked.name,
            intended_s=due_s,
            sent_s=sent_s,
            finished_s=finished_s,
            latency_ms=latency_ms,
            status=answer.status,
            variant=answer.variant,
            fidelity=answer.fidelity,
            budget_ms=budget_ms,
            within_budget=None
            if budget_ms is None
            else answer.status == OK and latency_ms <= budget_ms,
            feasible=request.feasible,
            texts=asked.texts_per_request,
            error=answer.error,
        )
        return row, answer.size_bytes

    def _exchange(self, body: bytes) -> Answer:
        late = TimeoutError(f"no answer in {self._timeout_s:g} s")
        try:
            with gevent.Timeout(self._timeout_s, late):
                response = self._client.request("POST", self._path, body=body)
                content = response.read()
        except Exception as error:  # whatever kept the answer away is a row, and no end of the load
            return Answer(NO_ANSWER, "", None, 0, f"{type(error).__name__}: {error}"[:ERROR_CHARS])
        status = response.get_code()
        if status != OK:
            return Answer(status, "", None, len(content), _error_text(content))
        variant, fidelity = response.get("X-Variant"), response.get("X-Fidelity")
        return Answer(
            status,
            str(variant or ""),
            float(str(fidelity)) if fidelity else None,
            len(content),
            "",
        )


def _error_text(content: bytes) -> str:
    """OpenAI's error message, or the answer's beginning."""
    try:
        text = str(json.loads(content)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        text = content.decode(errors="replace")
    return " ".join(text.split())[:ERROR_CHARS]
