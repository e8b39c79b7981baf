"""The answers that go back over HTTP, in OpenAI's shapes with our routing beside them."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

import numpy as np

from serve_app.api import Encoding
from serve_app.asgi import Response
from serve_app.engines.base import Vectors
from serve_app.engines.tokenization import Tokenized
from serve_app.errors import MethodNotAllowed, NotAdmitted, ServeAppError, Unauthorized
from serve_app.manifest import Checkpoint
from serve_app.parts import Embedded
from serve_app.policy.brain import Brain
from serve_app.policy.brownout import Brownout
from serve_app.policy.routing import Candidate, Decision
from serve_app.registry import Rung


def shorten(vectors: Vectors, dimensions: int | None) -> Vectors:
    """The first `dimensions` of each vector, brought back to unit length."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    short = vectors[:, :dimensions]
    norms = np.linalg.norm(short, axis=1, keepdims=True)
    return np.asarray(short / np.maximum(norms, np.float32(1e-12)), dtype=np.float32)


def embedding_items(vectors: Vectors, encoding: Encoding) -> list[dict[str, Any]]:
    """OpenAI's `data` list. Base64 holds little-endian float32, as OpenAI's clients read it."""
    contiguous = np.ascontiguousarray(vectors, dtype="<f4")
    if encoding == "base64":
        embeddings: Sequence[object] = [base64.b64encode(row).decode("ascii") for row in contiguous]
    else:
        embeddings = list(contiguous)
    return [
        {"object": "embedding", "index": index, "embedding": embedding}
        for index, embedding in enumerate(embeddings)
    ]


def embeddings_response(
    model: str,
    data: list[dict[str, Any]],
    tokenized: Tokenized,
    *,
    routing: dict[str, Any],
) -> Response:
    """OpenAI's answer, `routing` in the body and its main fields in headers."""
    usage = {"prompt_tokens": tokenized.tokens, "total_tokens": tokenized.tokens}
    content = {"object": "list", "data": data, "model": model, "usage": usage, "routing": routing}
    return Response.json(content, headers=routing_headers(routing))


def routing_headers(routing: dict[str, Any]) -> dict[str, str]:
    """The main fields of `routing_object`."""
    return {
        "X-Variant": str(routing["variant"]),
        "X-Fidelity": f"{routing['fidelity']:.6f}",
        "X-Predicted-Ms": str(routing["predicted_ms"]),
        "X-Queue-Ms": str(routing["queue_ms"]),
        "X-Inference-Ms": str(routing["inference_ms"]),
    }


def routing_object(
    decision: Decision,
    chosen: Candidate,
    done: Embedded,
    *,
    decided_ms: float,
    total_ms: float,
    truncated: list[int],
) -> dict[str, Any]:
    """How a request was routed and how that went, in milliseconds from its arrival."""
    budget_ms = decision.budget_ms
    return {
        "variant": chosen.variant,
        "fidelity": chosen.fidelity,
        "reason": decision.reason,
        "predicted_ms": round(decided_ms + chosen.forecast.p50_ms, 3),
        "budget_ms": budget_ms,
        "queue_ms": round(done.queue_ms, 3),
        "inference_ms": round(done.inference_ms, 3),
        "total_ms": round(total_ms, 3),
        "within_budget": None if budget_ms is None else total_ms <= budget_ms,
        "truncated": truncated,
    }


def route_response(
    decision: Decision, tokenized: Tokenized, *, decided_ms: float, brownout_level: int
) -> Response:
    """A decision in full, nothing computed: what `/v1/embeddings` would do now, and why.

    The forecast of a variant that is not ready is that of an idle one.
    """
    chosen = decision.chosen
    content = {
        "admitted": chosen is not None,
        "variant": None if chosen is None else chosen.variant,
        "fidelity": None if chosen is None else chosen.fidelity,
        "reason": decision.reason,
        "at_risk": decision.at_risk,
        "predicted_ms": None if chosen is None else round(decided_ms + chosen.forecast.p50_ms, 3),
        "budget_ms": decision.budget_ms,
        "retry_after_s": decision.retry_after_s,
        "brownout_level": brownout_level,
        "tokens": tokenized.tokens,
        "truncated": tokenized.truncated,
        "forecasts": [
            {
                "variant": c.variant,
                "fidelity": c.fidelity,
                "ready": not c.cold,
                "wait_ms": round(c.forecast.wait_ms, 3),
                "p50_ms": round(c.forecast.p50_ms, 3),
                "p95_ms": round(c.forecast.p95_ms, 3),
            }
            for c in decision.grounds.candidates
        ],
        "rejected": [{"variant": r.variant, "reason": r.reason} for r in decision.rejected],
    }
    return Response.json(content)


def model_object(name: str, checkpoint: Checkpoint, *, created_s: int) -> dict[str, Any]:
    """One name for `/v1/models`: OpenAI's fields, and what a client must know to use the model well.

    Prompts are the client's to put before its texts, and `matryoshka_dims` the `dimensions` that the
    model was trained to be cut to: the server applies neither on its own.
    """
    return {
        "id": name,
        "object": "model",
        "created": created_s,
        "owned_by": "local",
        "dimensions": checkpoint.dims,
        "matryoshka_dims": checkpoint.matryoshka_dims,
        "max_tokens": checkpoint.max_tokens,
        "prompts": asdict(checkpoint.prompts),
    }


def brownout_object(brownout: Brownout) -> dict[str, Any]:
    """How far unhinted requests are lowered now, and the share of requests that missed lately."""
    return {
        "level": brownout.level,
        "floor": brownout.floor,
        "miss_share": round(brownout.miss_share, 4),
    }


def variant_object(rung: Rung, found: Candidate, brain: Brain, *, now_s: float) -> dict[str, Any]:
    """One deployed variant for `/v1/variants`.

    Args:
        rung: the variant.
        found: how a typical request sees it now.
        brain: what else is known of it.
        now_s: when.
    """
    manifest = rung.manifest
    load = brain.load(found.variant)
    replicas = load.replicas(now_s=now_s)
    profile, forecast = load.profile, found.forecast
    return {
        "variant": manifest.variant,
        "runtime": manifest.runtime,
        "precision": manifest.precision,
        "device": rung.device,
        "ready": not found.cold,
        "fidelity": manifest.fidelity.p1,
        "fidelity_mean": manifest.fidelity.mean,
        "fidelity_min": manifest.fidelity.min,
        "batch_drift": manifest.fidelity.batch_drift,
        "batch_invariant": manifest.batch_invariant,
        "size_bytes": manifest.size_bytes,
        "profile": asdict(profile) | {"cost_ms": profile.cost_ms},
        "streams": load.streams,
        "replicas": 0 if found.cold else max(1, len(replicas)),
        "queued_tokens": sum(r.queued_tokens for r in replicas),
        "inflight_tokens": load.inflight_tokens,
        "busy": brain.demand.busy(found.variant, now_s=now_s),
        "p95_factor": round(forecast.p95_ms / max(forecast.p50_ms, 1e-9), 3),
        "forecast_error": load.forecast_error,
    }


def error_response(error: ServeAppError) -> Response:
    """OpenAI's error object."""
    ours = error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    kind = "server_error" if ours else "invalid_request_error"
    if isinstance(error, NotAdmitted):
        kind = "overloaded_error"
    content = {
        "message": as_unicode(error.message),
        "type": kind,
        "param": None if error.param is None else as_unicode(error.param),
        "code": error.code,
    }
    return Response.json({"error": content}, status=error.status, headers=refusal_headers(error))


def refusal_headers(error: ServeAppError) -> dict[str, str]:
    """`Retry-After` with a 429 where waiting helps, and what else HTTP wants with a status."""
    if isinstance(error, NotAdmitted) and error.retry_after_s is not None:
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    if isinstance(error, MethodNotAllowed):
        return {"Allow": ", ".join(error.allowed)}
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    return {}


def as_unicode(text: str) -> str:
    """A refused field's name may hold lone surrogates, which JSON encoders refuse."""
    return text.encode("utf-8", "backslashreplace").decode()
