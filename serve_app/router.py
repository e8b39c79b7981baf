"""The ingress: one request from its first byte to its answer.

parse → tokenise once → decide → dispatch → answer. Ray is not known here: `app.py` gives the router
its transports and its place in Serve.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from serve_app.answers import (
    embedding_items,
    embeddings_response,
    error_response,
    route_response,
    routing_object,
    shorten,
    variant_object,
)
from serve_app.api import EmbeddingRequest, check_token_range, parse_request, resolve_model
from serve_app.asgi import (
    ClientDisconnected,
    Receive,
    Response,
    Scope,
    Send,
    read_body,
    require_json,
    send_response,
)
from serve_app.dispatch import Lane, Transport
from serve_app.engines.tokenization import Tokenized, Tokenizer
from serve_app.errors import (
    BadRequest,
    HintConflict,
    InternalError,
    MethodNotAllowed,
    NotAdmitted,
    NotFound,
    NotReady,
    ServeAppError,
    UnknownVariant,
    shown,
)
from serve_app.policy.forecast import forecast
from serve_app.policy.hint import Hint, Quality
from serve_app.policy.load import VariantLoad
from serve_app.policy.routing import Candidate, Decision, decide, fidelity_floor
from serve_app.registry import Ladder, Rung
from serve_app.settings import Settings

log = logging.getLogger(__name__)

AUTO_MODEL = "auto"
WARM_UP_CALLS = 10
THREADED_CHARS = 20_000  # tokenising more than this would hold the event loop for milliseconds

Reader = Callable[[], Response]
Poster = Callable[[Scope, Receive, float], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request after parsing and tokenising: all that a decision needs."""

    request: EmbeddingRequest
    hint: Hint
    tokenized: Tokenized


class Router:
    """Answers HTTP for all variants of one model. Use from one event loop."""

    def __init__(
        self, ladder: Ladder, transports: Mapping[str, Transport], *, settings: Settings
    ) -> None:
        checkpoint = ladder.rungs[0].manifest.checkpoint
        self._ladder = ladder
        self._default_hint = _reachable(settings.default_hint(), ladder)
        self._settings = settings
        self._dims = checkpoint.dims
        self._name = checkpoint.name
        self._names = (checkpoint.name, *settings.aliases, AUTO_MODEL)
        self._tokenizer = Tokenizer(ladder.tokenizer_file, max_tokens=checkpoint.max_tokens)
        self._rungs: dict[str, Rung] = {r.manifest.variant: r for r in ladder.rungs}
        self._lanes = {
            name: Lane(rung.manifest, transports[name], load=VariantLoad())
            for name, rung in self._rungs.items()
        }
        self._ready: set[str] = set()
        self._started_s = int(time.time())
        self._get: dict[str, Reader] = {
            "/v1/models": self._models,
            "/v1/variants": self._variants,
            "/health": self._health,
            "/ready": self._readiness,
        }
        self._post: dict[str, Poster] = {
            "/v1/embeddings": self._embeddings,
            "/v1/route": self._route,
        }

    async def warm_up(self) -> None:
        """Wait for every variant's first replica, and measure what a call to it costs on top."""
        await asyncio.gather(*(self._warm_up(name) for name in self._lanes))

    async def _warm_up(self, name: str) -> None:
        lane = self._lanes[name]
        texts = self._tokenizer.encode(["warm-up"]).texts
        await lane.embed(texts, deadline_s=None)  # opens connections: tells nothing of later calls
        lane.load.hop_ms = None
        for _ in range(WARM_UP_CALLS):
            await lane.embed(texts, deadline_s=None)
        self._ready.add(name)

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
        prepared = await self._prepare(scope, receive)
        decision = self._decide(prepared, elapsed_ms=_ms_since(arrived_s))
        chosen = decision.chosen
        if chosen is None:
            raise NotAdmitted(
                f"not admitted: {decision.reason}",
                param="quality" if decision.budget_ms is None else "latency_ms",
                retry_after_s=decision.retry_after_s,
            )
        lane = self._lanes[chosen.variant]
        sent_s = time.monotonic()
        deadline_s = None if decision.budget_ms is None else arrived_s + decision.budget_ms / 1000
        done = await lane.embed(prepared.tokenized.texts, deadline_s=deadline_s)
        lane.load.learn(predicted_ms=chosen.forecast.p50_ms, actual_ms=_ms_since(sent_s))
        request = prepared.request
        data = embedding_items(shorten(done.vectors, request.dimensions), request.encoding)
        routing = routing_object(
            decision,
            chosen,
            done,
            decided_ms=(sent_s - arrived_s) * 1000,
            total_ms=_ms_since(arrived_s),
            truncated=prepared.tokenized.truncated,
        )
        return embeddings_response(self._name, data, prepared.tokenized, routing=routing)

    async def _route(self, scope: Scope, receive: Receive, arrived_s: float) -> Response:
        prepared = await self._prepare(scope, receive)
        decided_ms = _ms_since(arrived_s)
        return route_response(
            self._decide(prepared, elapsed_ms=decided_ms),
            self._candidates(prepared.tokenized.tokens),
            prepared.tokenized,
            decided_ms=decided_ms,
        )

    async def _prepare(self, scope: Scope, receive: Receive) -> Prepared:
        require_json(scope)
        body = await read_body(receive, limit_bytes=self._settings.max_body_bytes)
        request = parse_request(scope, body, max_texts=self._settings.max_texts)
        hint = self._resolve(request)
        tokenized = await self._tokenize(request)
        if tokenized.truncated and not request.truncate:
            where = f"input[{tokenized.truncated[0]}]"
            raise BadRequest(
                f"{where} has more than the model's {self._tokenizer.max_tokens} tokens, "
                "and truncate is false",
                param=where,
            )
        return Prepared(request, hint, tokenized)

    def _resolve(self, request: EmbeddingRequest) -> Hint:
        """Check model, variant and dimensions against what is served; apply the default hint."""
        hint = resolve_model(request, names=self._names)
        if hint.variant is not None and hint.variant not in self._rungs:
            raise UnknownVariant(
                f"no variant {shown(hint.variant)}; deployed are {', '.join(self._rungs)}",
                param="variant",
            )
        if hint.variant is not None:
            self._require_no_conflict(hint, hint.variant)
        if request.dimensions is not None and request.dimensions > self._dims:
            raise BadRequest(
                f"dimensions is {request.dimensions}, the model has {self._dims}",
                param="dimensions",
            )
        return hint.or_default(self._default_hint)

    def _require_no_conflict(self, hint: Hint, pinned: str) -> None:
        """A floor is a promise; a pin below it cannot be served."""
        fidelities = {name: rung.manifest.fidelity.p1 for name, rung in self._rungs.items()}
        floor = fidelity_floor(hint, list(fidelities.values()))
        if fidelities[pinned] < floor:
            raise HintConflict(
                f"variant {shown(pinned)} has fidelity {fidelities[pinned]:.4f}, "
                f"and quality asks for {floor:.4f} at least",
                param="variant",
            )

    async def _tokenize(self, request: EmbeddingRequest) -> Tokenized:
        if request.token_ids is not None:
            check_token_range(request.token_ids, self._tokenizer.vocab_size)
            return self._tokenizer.complete(request.token_ids)
        texts = request.texts or []
        if sum(map(len, texts)) > THREADED_CHARS:
            return await asyncio.to_thread(self._tokenizer.encode, texts)
        return self._tokenizer.encode(texts)

    def _decide(self, prepared: Prepared, *, elapsed_ms: float) -> Decision:
        candidates = self._candidates(prepared.tokenized.tokens)
        if not candidates:
            waiting = ", ".join(self._rungs)
            raise NotReady(f"no replica is up yet; starting are {waiting}. Ask /ready")
        return decide(
            prepared.hint,
            candidates,
            elapsed_ms=elapsed_ms,
            max_wait_ms=self._settings.max_wait_ms,
        )

    def _candidates(self, tokens: int) -> list[Candidate]:
        """The variants that are up, as a request of `tokens` tokens sees them now."""
        now_s = time.monotonic()
        return [
            Candidate(
                variant=name,
                fidelity=rung.manifest.fidelity.p1,
                cost=rung.manifest.profile.cost_ms,
                forecast=forecast(
                    rung.manifest.profile, self._lanes[name].load.at(now_s=now_s), tokens=tokens
                ),
            )
            for name, rung in self._rungs.items()
            if name in self._ready
        ]

    def _models(self) -> Response:
        ids = [*self._names, *(f"{self._name}:{variant}" for variant in self._rungs)]
        return Response.json(
            {
                "object": "list",
                "data": [
                    {"id": i, "object": "model", "created": self._started_s, "owned_by": "local"}
                    for i in ids
                ],
            }
        )

    def _variants(self) -> Response:
        now_s = time.monotonic()
        deployed = [
            variant_object(rung, self._lanes[name].load, ready=name in self._ready, now_s=now_s)
            for name, rung in self._rungs.items()
        ]
        off = [{"variant": o.variant, "reason": o.reason} for o in self._ladder.off]
        return Response.json({"variants": deployed, "not_on_ladder": off})

    def _health(self) -> Response:
        return Response.json({"status": "ok"})

    def _readiness(self) -> Response:
        waiting = [name for name in self._rungs if name not in self._ready]
        if waiting:
            raise NotReady(f"starting: {', '.join(waiting)}; ready: {len(self._ready)}")
        return Response.json({"status": "ready", "variants": list(self._rungs)})


def _ms_since(start_s: float) -> float:
    return (time.monotonic() - start_s) * 1000


def _reachable(default: Hint, ladder: Ladder) -> Hint:
    """The default hint with its floor lowered to what is deployed: nobody asked for more."""
    best = max(rung.manifest.fidelity.p1 for rung in ladder.rungs)
    if default.quality is None or default.quality.floor <= best:
        return default
    log.warning(
        "the default floor %s is above every variant; using %s", default.quality.floor, best
    )
    return replace(default, quality=Quality(floor=best))
