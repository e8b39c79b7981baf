"""`python -m loadtests.bench.bare`: uvicorn around the same engines and batchers, in one process, without Ray.

What a server costs that routes nothing: it parses, tokenises, batches and encodes as ours does, in as many
streams, and each request names its variant.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from converters.latency import gpu_count
from serve_app.answers import embedding_items, shorten
from serve_app.api import parse_request
from serve_app.asgi import Receive, Response, Scope, Send, read_body, send_response
from serve_app.calls import Call
from serve_app.engines.opening import open_profiled
from serve_app.engines.tokenization import Tokenizer
from serve_app.errors import BadRequest, ServeAppError
from serve_app.placement import cores_of, streams_of
from serve_app.registry import Ladder, Rung, load_ladder
from serve_app.replica import Replica
from serve_app.settings import Settings

DEFAULTS = Settings()


class Bare:
    """The ASGI app; uvicorn calls it on one event loop."""

    def __init__(self, ladder: Ladder) -> None:
        checkpoint = ladder.rungs[0].manifest.checkpoint
        self._name, self._dims = checkpoint.name, checkpoint.dims
        self._tokenizer = Tokenizer(ladder.tokenizer_file, max_tokens=checkpoint.max_tokens)
        self._replicas = {rung.manifest.variant: _replica(rung) for rung in ladder.rungs}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request."""
        if scope["method"] == "GET":
            await send_response(send, Response.json({"status": "ready"}))
            return
        try:
            response = await self._embed(scope, receive)
        except ServeAppError as error:
            response = Response.json({"error": error.message}, status=error.status)
        await send_response(send, response)

    async def _embed(self, scope: Scope, receive: Receive) -> Response:
        body = await read_body(receive, limit_bytes=DEFAULTS.max_body_bytes)
        request = parse_request(scope, body, max_texts=DEFAULTS.max_texts)
        replica = self._replicas.get(request.hint.variant or "")
        if replica is None:
            raise BadRequest("variant must be one of those served", param="variant")
        tokenized = self._tokenizer.encode(request.input.texts)
        reply = await replica.embed(Call.of(tokenized.texts))
        vectors = np.frombuffer(reply.vectors, dtype=np.float32).reshape(-1, self._dims)
        return Response.json(
            {
                "object": "list",
                "data": embedding_items(shorten(vectors, request.dimensions), request.encoding),
                "model": self._name,
                "usage": {"prompt_tokens": tokenized.tokens, "total_tokens": tokenized.tokens},
            }
        )


def _replica(rung: Rung) -> Replica:
    streams = streams_of(rung, DEFAULTS, cores=cores_of(DEFAULTS))
    opened = open_profiled(
        rung.folder, rung.manifest, threads=DEFAULTS.threads, device=rung.device, streams=streams
    )
    return Replica(
        opened.engine,
        rung.manifest,
        name=rung.manifest.variant,
        measured=opened.measured,
        streams=streams,
    )


def main() -> None:
    """Serve until SIGTERM."""
    import uvicorn

    parser = argparse.ArgumentParser()
    parser.add_argument("--artifacts", type=Path, required=True)
    parser.add_argument("--variants", required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    app = Bare(load_ladder(args.artifacts, named=tuple(args.variants.split(",")), gpus=gpu_count()))
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=args.port,
        lifespan="off",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
