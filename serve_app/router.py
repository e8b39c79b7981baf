"""The ingress: one request from its first byte to its answer.

let in → parse → tokenise once → decide → dispatch → answer. Ray is not known here: `app.py` gives the router
its transports and its place in Serve.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from serve_app.answers import (
    brownout_object,
    embedding_items,
    embeddings_response,
    error_response,
    model_object,
    route_response,
    routing_object,
    shorten,
    variant_object,
)
from serve_app.api import EmbeddingRequest, parse_request, resolve_model
from serve_app.asgi import (
    ClientDisconnected,
    Receive,
    Response,
    Scope,
    Send,
    client_of,
    read_body,
    require_json,
    send_response,
    unless_gone,
)
from serve_app.dispatch import Transport
from serve_app.engines.tokenization import Tokenized, Tokenizer
from serve_app.errors import (
    BadRequest,
    InternalError,
    MethodNotAllowed,
    NotAdmitted,
    NotFound,
    NotReady,
    ServeAppError,
    shown,
)
from serve_app.fleet import Fleet
from serve_app.inputs import check_token_range
from serve_app.metrics import CONTENT_TYPE, exposition
from serve_app.policy.load import TYPICAL_TOKENS
from serve_app.registry import Ladder
from serve_app.settings import Settings

log = logging.getLogger(__name__)

AUTO_MODEL = "auto"
THREADED_CHARS = 20_000  # tokenising more than this would hold the event loop for milliseconds

Reader = Callable[[], Response]
Poster = Callable[[Scope, Receive, float], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request after parsing and tokenising: all that a decision needs."""

    request: EmbeddingRequest
    tokenized: Tokenized
    client: str


class Router:
    """Answers HTTP for all variants of one model. Use from one event loop."""

    def __init__(
        self, ladder: Ladder, transports: Mapping[str, Transport], *, settings: Settings
    ) -> None:
        checkpoint = ladder.rungs[0].manifest.checkpoint
        self._fleet = Fleet(ladder, transports, settings=settings)
        self._settings = settings
        self._checkpoint = checkpoint
        self._dims = checkpoint.dims
        self._name = checkpoint.name
        self._names = (checkpoint.name, *settings.aliases, AUTO_MODEL)
        self._tokenizer = Tokenizer(ladder.tokenizer_file, max_tokens=checkpoint.max_tokens)
        self._started_s = int(time.time())
        self._get: dict[str, Reader] = {
            "/v1/models": self._models,
            "/v1/variants": self._variants,
            "/health": self._health,
            "/ready": self._readiness,
            "/metrics": self._metrics,
        }
        self._post: dict[str, Poster] = {
            "/v1/embeddings": self._embeddings,
            "/v1/route": self._route,
        }

    async def warm_up(self) -> None:
        """Wait for every variant's first replica; `/ready` tells when all are up."""
        await self._fleet.warm_up(self._tokenizer.encode(["warm-up"]).texts)

    async def warm_up_variant(self, variant: str) -> None:
        """Wait for a variant's first replica, and let requests go there."""
        await self._fleet.warm_up_variant(variant, self._tokenizer.encode(["warm-up"]).texts)

    def cool_down(self, variant: str) -> None:
        """Let no request go to a variant: it is to have no replica."""
        self._fleet.cool_down(variant)

    def demand(self) -> Mapping[str, float]:
        """Engines that each variant would keep busy if each request had its first choice."""
        return self._fleet.demand()

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request, as ASGI calls it."""
        arrived_s = time.monotonic()
        try:
            response = await self._answer(scope, receive, arrived_s)
        except ClientDisconnected:
            return
        except ServeAppError as error:
            response = error_response(error)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            response = error_response(InternalError("a bug in the server; its log has the details"))
        await send_response(send, response)

    async def _answer(self, scope: Scope, receive: Receive, arrived_s: float) -> Response:
        path, method = scope["path"], scope["method"]
        if method == "POST" and path in self._post:
            return await self._post[path](scope, receive, arrived_s)
        if method == "GET" and path in self._get:
            return self._get[path]()
        if path in self._post or path in self._get:
            allowed = "POST" if path in self._post else "GET"
            raise MethodNotAllowed(
                f"{path} takes {allowed}, got {shown(method)}", allowed=(allowed,)
            )
        known = ", ".join((*self._post, *self._get))
        raise NotFound(f"no route {shown(path)}; routes: {known}")

    async def _embeddings(self, scope: Scope, receive: Receive, arrived_s: float) -> Response:
        self._fleet.come_in()
        prepared = await self._prepare(scope, receive)
        request, tokenized, hint = prepared.request, prepared.tokenized, prepared.request.hint
        decided_ms = _ms_since(arrived_s)
        decision = self._fleet.decide(
            hint,
            tokens=tokenized.tokens,
            texts=len(tokenized.texts),
            elapsed_ms=decided_ms,
            client=prepared.client,
        )
        chosen = decision.chosen
        if chosen is None:
            raise NotAdmitted(
                f"not admitted: {decision.reason}",
                param=request.sent_as.get(decision.refused_for or ""),
                retry_after_s=decision.retry_after_s,
            )
        deadline_s = None if decision.budget_ms is None else arrived_s + decision.budget_ms / 1000
        work = self._fleet.embed(hint, decision, tokenized, deadline_s=deadline_s)
        done = await unless_gone(receive, work)
        data = embedding_items(shorten(done.vectors, request.dimensions), request.encoding)
        routing = routing_object(
            decision,
            chosen,
            done,
            decided_ms=decided_ms,
            total_ms=_ms_since(arrived_s),
            truncated=tokenized.truncated,
        )
        return embeddings_response(self._name, data, tokenized, routing=routing)

    async def _route(self, scope: Scope, receive: Receive, arrived_s: float) -> Response:
        prepared = await self._prepare(scope, receive)
        decided_ms = _ms_since(arrived_s)
        decision = self._fleet.judge(
            prepared.request.hint,
            tokens=prepared.tokenized.tokens,
            texts=len(prepared.tokenized.texts),
            elapsed_ms=decided_ms,
            client=prepared.client,
        )
        return route_response(
            decision,
            prepared.tokenized,
            decided_ms=decided_ms,
            brownout_level=self._fleet.brain.brownout.level,
        )

    async def _prepare(self, scope: Scope, receive: Receive) -> Prepared:
        require_json(scope)
        body = await read_body(receive, limit_bytes=self._settings.max_body_bytes)
        request = resolve_model(
            parse_request(scope, body, max_texts=self._settings.max_texts), names=self._names
        )
        self._check(request)
        tokenized = await self._tokenize(request)
        if tokenized.truncated and not request.truncate:
            where = request.input.name(tokenized.truncated[0])
            raise BadRequest(
                f"{where} has more than the model's {self._tokenizer.max_tokens} tokens, "
                "and truncate is false",
                param=where,
            )
        return Prepared(request, tokenized, client_of(scope))

    def _check(self, request: EmbeddingRequest) -> None:
        """Hold variant and dimensions against what is served."""
        self._fleet.check_pin(request.hint, param=request.sent_as.get("variant", "variant"))
        if request.dimensions is not None and request.dimensions > self._dims:
            raise BadRequest(
                f"dimensions is {request.dimensions}, the model has {self._dims}",
                param="dimensions",
            )

    async def _tokenize(self, request: EmbeddingRequest) -> Tokenized:
        if request.input.token_ids:
            check_token_range(request.input, self._tokenizer.vocab_size)
            return self._tokenizer.complete(request.input.token_ids)
        texts = request.input.texts
        if sum(map(len, texts)) > THREADED_CHARS:
            return await asyncio.to_thread(self._tokenizer.encode, texts)
        return self._tokenizer.encode(texts)

    def _models(self) -> Response:
        ids = [*self._names, *(f"{self._name}:{variant}" for variant in self._fleet.rungs)]
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


def _ms_since(start_s: float) -> float:
    return (time.monotonic() - start_s) * 1000
