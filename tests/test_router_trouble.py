"""The router when clients leave, and when too much is asked: slots freed, and less for the unhinted."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.asked import error_of, variant_of
from tests.held_calls import HeldTransport, settle

MakeRouter = Callable[..., Any]


class Client:
    """One request over ASGI, whose sender may hang up."""

    def __init__(self, **fields: object) -> None:
        self.sent: list[Any] = []
        self._body = json.dumps({"input": "hello world", **fields}).encode()
        self._hung_up = asyncio.Event()
        self._asked = False

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body}
        await self._hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def ask(self, served: Any) -> asyncio.Task[None]:
        scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": []}
        return asyncio.create_task(served.router.handle(scope, self.receive, self.send))

    def hang_up(self) -> None:
        self._hung_up.set()


def test_a_client_that_hangs_up_frees_its_slot(make_router: MakeRouter) -> None:
    """At once: its call is given up, no token is in flight, nothing is sent, and nobody was failed."""
    transport = HeldTransport()
    served = make_router(ready=False, transports={"fake-int8": transport})
    served.set_ready()
    brain = served.router._fleet.brain
    load = brain.load("fake-int8")

    async def scenario() -> None:
        client = Client(variant="fake-int8")
        handled = client.ask(served)
        await settle()
        assert (load.inflight_tokens, load.calls) == (4, 1)
        client.hang_up()
        await settle()
        assert handled.done()
        assert (load.inflight_tokens, load.calls) == (0, 0)
        assert transport.is_cancelled(0)
        assert client.sent == []
        assert brain.brownout.miss_share == 0

    served.run(scenario())


def test_others_in_the_call_are_served_when_one_hangs_up(make_router: MakeRouter) -> None:
    """Who shares a call with a client that left gets the answer all the same."""
    transport = HeldTransport()
    served = make_router(ready=False, transports={"fake-int8": transport})
    served.set_ready()

    async def scenario() -> None:
        first = [Client(variant="fake-int8") for _ in range(2)]
        for client in first:
            client.ask(served)
            await settle()
        leaves, waits = Client(variant="fake-int8"), Client(variant="fake-int8")
        leaves.ask(served)
        waits.ask(served)
        await settle()
        await transport.answer(0)
        assert transport.lengths(2) == [4, 4]
        leaves.hang_up()
        await settle()
        await transport.answer(2)
        await transport.answer(1)
        assert leaves.sent == []
        assert [client.sent[0]["status"] for client in (*first, waits)] == [200, 200, 200]

    served.run(scenario())


@pytest.fixture
def browned_out(served: Any) -> Any:
    """A server that has missed too much of late."""
    brownout = served.router._fleet.brain.brownout
    for _ in range(40):
        brownout.tell(missed=True, now_s=time.monotonic())
    assert brownout.level == 1
    return served


def test_a_brownout_is_visible(browned_out: Any) -> None:
    """In the reason of each answer that it touched, in both lists, and in the metrics."""
    assert "brownout level 1" in browned_out.embed().json()["routing"]["reason"]
    found = browned_out.ask("GET", "/v1/variants").json()["brownout"]
    assert (found["level"], found["floor"]) == (1, 0.99)
    assert found["miss_share"] > 0.9
    route = browned_out.ask("POST", "/v1/route", json={"input": "hello world"}).json()
    assert route["brownout_level"] == 1
    assert "brownout level 1" in route["reason"]
    assert "embeddings_brownout_level" in browned_out.ask("GET", "/metrics").text


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ({"latency_ms": 10_000}, "fake-bf16"),
        ({"quality": "best"}, "fake-fp32"),
        ({"variant": "fake-fp32"}, "fake-fp32"),
    ],
)
def test_a_brownout_touches_no_hint(browned_out: Any, hint: Any, expected: str) -> None:
    """Who asked for something gets it, and reads of no brownout."""
    response = browned_out.embed(**hint)
    assert variant_of(response) == expected
    assert "brownout" not in response.json()["routing"]["reason"]


def test_who_asks_for_most_is_shed_first(browned_out: Any) -> None:
    """While something must be shed, the client over its share may fill half its budget only."""
    for _ in range(20):
        _ask(browned_out, "greedy", variant="fake-int8")
    _ask(browned_out, "modest", variant="fake-int8")
    hint = {"variant": "fake-bf16", "latency_ms": 790}  # which takes 400 ms at the median
    error = error_of(_ask(browned_out, "greedy", **hint), 429)
    assert "over its share" in error["message"]
    assert variant_of(_ask(browned_out, "modest", **hint)) == "fake-bf16"


def _ask(served: Any, key: str, **hint: object) -> Any:
    headers = {"Authorization": f"Bearer {key}"}
    body = {"input": "hello world", **hint}
    return served.ask("POST", "/v1/embeddings", json=body, headers=headers)
