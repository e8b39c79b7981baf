"""Answers of the API as the pages may get them, and text that must stay text."""

from __future__ import annotations

import base64

import numpy as np

MARKUP = "<b>x</b>"
ESCAPED = "&lt;b&gt;x&lt;/b&gt;"


def variant(name: str, *, cost_ms: float, fidelity: float) -> dict[str, object]:
    """One of `/v1/variants`, with the fields that the page reads."""
    return {
        "variant": name,
        "runtime": "onnx",
        "precision": "int8",
        "device": "cpu",
        "ready": True,
        "fidelity": fidelity,
        "size_bytes": 23_600_000,
        "profile": {"cost_ms": cost_ms},
        "replicas": 2,
    }


def forecast(name: str, *, p50_ms: float, fidelity: float) -> dict[str, object]:
    """One of the forecasts of `/v1/route`."""
    times = {"wait_ms": 0.0, "p50_ms": p50_ms, "p95_ms": 1.5 * p50_ms}
    return {"variant": name, "fidelity": fidelity, "ready": True, **times}


VARIANTS = {
    "variants": [
        variant("onnx-fp32", cost_ms=0.1012, fidelity=1.0),
        variant("onnx-int8", cost_ms=0.0443, fidelity=0.99699),
    ],
    "not_on_ladder": [{"variant": "onnx-fp16", "reason": f"needs {MARKUP}"}],
    "brownout": {"level": 0, "floor": 0.99, "miss_share": 0.0},
}
ROUTE = {
    "admitted": True,
    "variant": "onnx-int8",
    "fidelity": 0.99699,
    "reason": "highest fidelity whose p95 forecast fits the budget",
    "at_risk": False,
    "predicted_ms": 30.2,
    "budget_ms": 50.0,
    "retry_after_s": None,
    "brownout_level": 0,
    "tokens": 31,
    "truncated": [],
    "forecasts": [
        forecast("onnx-fp32", p50_ms=62.0, fidelity=1.0),
        forecast("onnx-int8", p50_ms=30.2, fidelity=0.99699),
    ],
    "rejected": [{"variant": "onnx-fp32", "reason": "p95 forecast 93.0 ms exceeds the 49.0 ms"}],
}
VECTORS = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 0, -1]], dtype="<f4")
EMBEDDINGS = {
    "object": "list",
    "model": "m",
    "data": [
        {"object": "embedding", "index": i, "embedding": base64.b64encode(row).decode()}
        for i, row in enumerate(VECTORS)
    ],
    "usage": {"prompt_tokens": 31, "total_tokens": 31},
    "routing": {
        "variant": "onnx-int8",
        "fidelity": 0.99699,
        "reason": "the reason of the answer",
        "predicted_ms": 30.2,
        "budget_ms": 50.0,
        "queue_ms": 0.517,
        "inference_ms": 21.4,
        "total_ms": 33.3,
        "within_budget": True,
        "truncated": [1],
    },
}
OPENAPI = {
    "openapi": "3.1.0",
    "info": {"title": "Canned", "version": "7.8.9", "description": "What it is for."},
    "paths": {
        "/v1/embeddings": {
            "post": {
                "summary": "Embed texts.",
                "parameters": [
                    {"name": "X-Quality", "in": "header", "schema": {"type": "string"}},
                ],
                "requestBody": {
                    "content": {
                        "application/json": {
                            "schema": {"$ref": "#/components/schemas/Request"},
                            "example": {"input": "it's"},
                        }
                    }
                },
                "responses": {"200": {"description": "Vectors."}, "429": {"description": "Late."}},
            }
        },
        "/ready": {"get": {"responses": {"200": {"description": f"Up {MARKUP}."}}}},
    },
    "components": {
        "schemas": {
            "Request": {
                "type": "object",
                "required": ["input"],
                "properties": {
                    "input": {
                        "oneOf": [
                            {"type": "string"},
                            {"type": "array", "items": {"type": "string"}, "maxItems": 77},
                        ],
                        "description": "The texts to embed.",
                    },
                    "latency_ms": {"$ref": "#/components/schemas/Budget"},
                },
            },
            "Budget": {
                "type": ["number", "null"],
                "exclusiveMinimum": 0,
                "default": None,
                "description": "How long the client waits.",
            },
        }
    },
}
REFUSAL = {"error": {"message": f"not admitted: {MARKUP}", "param": None, "code": "not_admitted"}}
CANNED = {
    "/ready": (200, {"status": "ready"}),
    "/v1/variants": (200, VARIANTS),
    "/v1/route": (200, ROUTE),
    "/v1/embeddings": (200, EMBEDDINGS),
    "/openapi.json": (200, OPENAPI),
}
