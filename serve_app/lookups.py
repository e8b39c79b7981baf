"""What a router tells without a request's body: what is served, how it fares, and the pages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from serve_app.answers import brownout_object, model_object, variant_object
from serve_app.asgi import Response
from serve_app.errors import NotReady
from serve_app.fleet import Fleet
from serve_app.metrics import CONTENT_TYPE, exposition
from serve_app.openapi import openapi
from serve_app.policy.load import TYPICAL_TOKENS
from serve_app.registry import Ladder
from serve_app.settings import Settings
from serve_app.tei import info_response

WEB = Path(__file__).with_name("web")

Reader = Callable[[], Response]


class Lookups:
    """Answers to `GET`, by path."""

    def __init__(
        self, ladder: Ladder, fleet: Fleet, *, names: Sequence[str], settings: Settings
    ) -> None:
        """Prepare what never changes.

        Args:
            ladder: what is deployed.
            fleet: its state.
            names: that the model goes by.
            settings: the server's.
        """
        self._fleet = fleet
        self._checkpoint = ladder.rungs[0].manifest.checkpoint
        self._names = names
        self._started_s = int(time.time())
        info = info_response(self._checkpoint, ladder, settings)
        described = Response.json(openapi(self._checkpoint, ladder, settings))
        playground, docs = _page("index.html"), _page("docs.html")
        self.open: Mapping[str, Reader] = {  # to all, whatever keys there are
            "/": lambda: playground,
            "/docs": lambda: docs,
            "/openapi.json": lambda: described,
            "/health": self._health,
            "/ready": self._readiness,
            "/metrics": self._metrics,
        }
        self.readers: Mapping[str, Reader] = {
            "/v1/models": self._models,
            "/v1/variants": self._variants,
            "/info": lambda: info,
            **self.open,
        }

    def _models(self) -> Response:
        name = self._checkpoint.name
        ids = [*self._names, *(f"{name}:{variant}" for variant in self._fleet.rungs)]
        data = [model_object(i, self._checkpoint, created_s=self._started_s) for i in ids]
        return Response.json({"object": "list", "data": data})

    def _variants(self) -> Response:
        fleet, brain, now_s = self._fleet, self._fleet.brain, self._fleet.look()
        deployed = [
            variant_object(fleet.rungs[found.variant], found, brain, now_s=now_s)
            for found in brain.candidates(TYPICAL_TOKENS, now_s=now_s)
        ]
        off = [{"variant": o.variant, "reason": o.reason} for o in fleet.off]
        brownout = brownout_object(brain.brownout)
        return Response.json({"variants": deployed, "not_on_ladder": off, "brownout": brownout})

    def _metrics(self) -> Response:
        fleet = self._fleet
        text = exposition(fleet.brain, fleet.tally, now_s=fleet.look())
        return Response(text, content_type=CONTENT_TYPE)

    def _health(self) -> Response:
        return Response.json({"status": "ok"})

    def _readiness(self) -> Response:
        if starting := self._fleet.starting:
            raise NotReady(f"starting: {', '.join(starting)}; up: {len(self._fleet.ready)}")
        return Response.json({"status": "ready", "variants": list(self._fleet.rungs)})


def _page(name: str) -> Response:
    """A file of `web/`, which says itself what it may load; who may frame it only a header can say."""
    return Response(
        (WEB / name).read_bytes(),
        headers={"Content-Security-Policy": "frame-ancestors 'self'", "Cache-Control": "no-cache"},
        content_type="text/html; charset=utf-8",
    )
