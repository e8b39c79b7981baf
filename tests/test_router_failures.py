"""The router when something goes wrong inside: errors in JSON, nothing left in flight, others served."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app import dispatch
from serve_app.calls import Call, Reply
from serve_app.dispatch import Transport
from serve_app.errors import InternalError, ReplicaDied
from tests.asked import VARIANTS, error_of, variant_of, vector_of

MakeRouter = Callable[..., Any]


class TestTrouble:
    """When replicas fail."""

    @pytest.mark.parametrize(
        ("raised", "status", "code"),
        [
            (ReplicaDied("gone"), 503, "replica_died"),
            (InternalError("broken"), 500, "internal_error"),
            (RuntimeError("secret"), 500, "internal_error"),
        ],
    )
    def test_a_failed_call_is_an_error_in_json(
        self, make_router: MakeRouter, raised: Exception, status: int, code: str
    ) -> None:
        """The client hears the kind of failure and nothing of the inside; others are served."""

        async def fail(_: Call) -> Reply:
            raise raised

        served = make_router(ready=False, transports={"fake-int8": fail})
        served.set_ready()
        error = error_of(served.embed(variant="fake-int8"), status)
        assert (error["code"], error["type"]) == (code, "server_error")
        assert "secret" not in error["message"]
        assert variant_of(served.embed(variant="fake-bf16")) == "fake-bf16"
        assert served.router._fleet.lanes["fake-int8"].load.inflight_tokens == 0

    def test_a_deadline_that_passes_is_a_504(
        self, make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Admitted, and then the budget, counted from arrival, passes: nothing stays in flight."""
        deadlines_s: list[float] = []

        def pass_at_once(deadline_s: float) -> float:
            deadlines_s.append(deadline_s)
            return asyncio.get_running_loop().time()

        async def never(_: Call) -> Reply:
            await asyncio.Event().wait()
            raise AssertionError

        served = make_router(ready=False, transports=dict.fromkeys(VARIANTS, never))
        served.set_ready()
        monkeypatch.setattr(dispatch, "_loop_time", pass_at_once)
        before_s = time.monotonic()
        error = error_of(served.embed(latency_ms=300), 504)
        assert before_s + 0.3 <= deadlines_s[0] <= time.monotonic() + 0.3
        assert (error["code"], error["type"]) == ("deadline_exceeded", "server_error")
        assert served.router._fleet.lanes["fake-int8"].load.inflight_tokens == 0

    def test_a_replica_that_dies_once_is_not_noticed(
        self, make_router: MakeRouter, clear_cut_artifacts: Path
    ) -> None:
        """The second try answers."""
        calls: list[Call] = []
        inner: list[Transport] = []

        async def dies_once(call: Call) -> Reply:
            calls.append(call)
            if len(calls) == 1:
                raise ReplicaDied("gone")
            return await inner[0](call)

        whole = make_router(clear_cut_artifacts)
        inner.append(whole.router._fleet.lanes["fake-int8"]._transport)
        served = make_router(ready=False, transports={"fake-int8": dies_once})
        served.set_ready()
        assert variant_of(served.embed(variant="fake-int8")) == "fake-int8"
        assert len(calls) == 2

    def test_a_bug_is_a_500_in_json(self, served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Even what nobody thought of is answered in the shape of an error, without its inside."""
        monkeypatch.setattr(served.router, "_check", lambda _: 1 / 0)
        error = error_of(served.embed(), 500)
        assert error["code"] == "internal_error"
        assert "zero" not in error["message"]

    def test_a_client_that_leaves_gets_no_answer(self, served: Any) -> None:
        """Gone before its body was complete: nothing is sent, nothing is raised."""
        sent: list[Any] = []
        incoming = [
            {"type": "http.request", "body": b'{"inp', "more_body": True},
            {"type": "http.disconnect"},
        ]

        async def receive() -> Any:
            return incoming.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": []}
        served.run(served.router.handle(scope, receive, send))
        assert sent == []

    def test_many_requests_at_once_get_their_own_vectors(self, served: Any) -> None:
        """Coalesced over the same lane, none gets another's rows; all tokens are given back."""
        texts = [" ".join(["hello"] * (1 + i % 7) + ["world"] * (i % 3)) for i in range(50)]

        async def ask(text: str) -> Any:
            sent: list[Any] = []
            body = json.dumps({"input": text, "variant": "fake-int8"}).encode()

            async def receive() -> Any:
                return {"type": "http.request", "body": body}

            async def send(message: Any) -> None:
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": []}
            await served.router.handle(scope, receive, send)
            return json.loads(sent[1]["body"])["data"][0]["embedding"]

        async def all_at_once() -> Any:
            return await asyncio.gather(*map(ask, texts))

        ids = [[2, *[9] * (1 + i % 7), *[10] * (i % 3), 3] for i in range(50)]
        expected = [vector_of(one) for one in ids]
        np.testing.assert_allclose(served.run(all_at_once()), expected, rtol=1e-5)
        assert served.router._fleet.lanes["fake-int8"].load.inflight_tokens == 0
