"""The ingress: one request from its first byte to its answer.

let in → parse → tokenise once → decide → dispatch → answer. Ray is not known here: `app.py` gives the router
its transports and its place in Serve.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from serve_app import tei
from serve_app.answers import (
    embedding_items,
    embeddings_response,
    error_response,
    route_response,
    routing_object,
    shorten,
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
from serve_app.engines.base import Vectors
from serve_app.engines.tokenization import Tokenized, Tokenizer
from serve_app.errors import (
    BadRequest,
    InternalError,
    MethodNotAllowed,
    NotAdmitted,
    NotFound,
    ServeAppError,
    shown,
)
from serve_app.fleet import Fleet
from serve_app.inputs import check_token_range
from serve_app.keys import Keys
from serve_app.lookups import Lookups
from serve_app.registry import Ladder
from serve_app.settings import Settings

log = logging.getLogger(__name__)

AUTO_MODEL = "auto"
THREADED_CHARS = 20_000  # tokenising more than this would hold the event loop for milliseconds

Parse = Callable[[Scope, bytes], EmbeddingRequest]
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
        self._keys = Keys.read(settings.api_keys_file)
        self._lookups = Lookups(ladder, self._fleet, names=self._names, settings=settings)
        self._post: dict[str, Poster] = {
            "/v1/embeddings": self._embeddings,
            "/v1/route": self._route,
            "/embed": self._tei_embed,
            "/tokenize": self._tei_tokenize,
            "/": self._tei_embed,
        }
        self._paths = {"POST": self._post.keys(), "GET": self._lookups.readers.keys()}

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
            response = _refusal(scope, error)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            bug = InternalError("a bug in the server; its log has the details")
            response = _refusal(scope, bug)
        await send_response(send, response)

    async def _answer(self, scope: Scope, receive: Receive, arrived_s: float) -> Response:
        path, method = scope["path"], scope["method"]
        if path not in self._paths.get(method, ()):
            raise _no_route(path, method, self._paths)
        if method == "GET" and path in self._lookups.open:
            return self._lookups.open[path]()
        self._keys.check(scope)
        if method == "GET":
            return self._lookups.readers[path]()
        return await self._post[path](scope, receive, arrived_s)

    async def _embeddings(self, scope: Scope, receive: Receive, arrived_s: float) -> Response:
        self._fleet.come_in()
        prepared = await self._prepare(scope, receive, self._parse)
        vectors, routing = await self._embed(prepared, receive, arrived_s)
        data = embedding_items(vectors, prepared.request.encoding)
        return embeddings_response(self._name, data, prepared.tokenized, routing=routing)

    async def _tei_embed(self, scope: Scope, receive: Receive, arrived_s: float) -> Response:
        self._fleet.come_in()
        prepared = await self._prepare(scope, receive, self._parse_tei)
        vectors, routing = await self._embed(prepared, receive, arrived_s)
        return tei.embed_response(vectors, prepared.tokenized, routing=routing)

    async def _tei_tokenize(self, scope: Scope, receive: Receive, arrived_s: float) -> Response:
        del arrived_s
        body = await self._body(scope, receive)
        request = tei.parse_tokenize(
            body, max_texts=self._settings.max_texts, prompts=self._checkpoint.prompts
        )
        found = await asyncio.to_thread(
            self._tokenizer.pieces, request.texts, special=request.special
        )
        return tei.tokenize_response(found)

    async def _embed(
        self, prepared: Prepared, receive: Receive, arrived_s: float
    ) -> tuple[Vectors, dict[str, Any]]:
        """Decide and dispatch: vectors as they are to be sent, and how they were routed."""
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
        routing = routing_object(
            decision,
            chosen,
            done,
            decided_ms=decided_ms,
            total_ms=_ms_since(arrived_s),
            truncated=tokenized.truncated,
        )
        return shorten(done.vectors, request.dimensions), routing

    async def _route(self, scope: Scope, receive: Receive, arrived_s: float) -> Response:
        prepared = await self._prepare(scope, receive, self._parse)
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

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        require_json(scope)
        return await read_body(receive, limit_bytes=self._settings.max_body_bytes)

    def _parse(self, scope: Scope, body: bytes) -> EmbeddingRequest:
        request = parse_request(scope, body, max_texts=self._settings.max_texts)
        return resolve_model(request, names=self._names)

    def _parse_tei(self, scope: Scope, body: bytes) -> EmbeddingRequest:
        max_texts, prompts = self._settings.max_texts, self._checkpoint.prompts
        return tei.parse_embed(scope, body, max_texts=max_texts, prompts=prompts)

    async def _prepare(self, scope: Scope, receive: Receive, parse: Parse) -> Prepared:
        request = parse(scope, await self._body(scope, receive))
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


def _refusal(scope: Scope, error: ServeAppError) -> Response:
    """In the shape of the route that was asked."""
    return (tei.error_response if scope["path"] in tei.PATHS else error_response)(error)


def _no_route(path: str, method: str, paths: Mapping[str, Collection[str]]) -> ServeAppError:
    allowed = tuple(name for name, known in paths.items() if path in known)
    if allowed:
        told = " or ".join(allowed)
        return MethodNotAllowed(f"{path} takes {told}, got {shown(method)}", allowed=allowed)
    known = ", ".join(sorted({path for some in paths.values() for path in some}))
    return NotFound(f"no route {shown(path)}; routes: {known}")


def _ms_since(start_s: float) -> float:
    return (time.monotonic() - start_s) * 1000
