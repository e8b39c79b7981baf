"""sentence-transformers behind uvicorn, as people write it in an afternoon, with its threads bounded.

Runs in the peer's own environment, so it knows nothing of this package. Texts of a request are encoded
by one call; calls at a time and threads of each are the command line's.
"""

import argparse
import asyncio
import base64
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True, help="PyTorch's, of each call")
    parser.add_argument("--calls", type=int, required=True, help="at a time in each worker")
    parser.add_argument("--workers", type=int, required=True, help="processes")
    return parser.parse_args()


def make_app() -> object:
    """Called by uvicorn in each worker."""
    import torch
    from sentence_transformers import SentenceTransformer
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    torch.set_num_threads(int(os.environ["PEER_THREADS"]))
    model = SentenceTransformer(os.environ["PEER_MODEL"], device="cpu")
    pool = ThreadPoolExecutor(int(os.environ["PEER_CALLS"]))

    def encode(texts: list[str]) -> Any:
        return model.encode(texts, normalize_embeddings=True, show_progress_bar=False)

    async def embeddings(request: Request) -> Response:
        asked = orjson.loads(await request.body())
        texts = asked["input"]
        texts = [texts] if isinstance(texts, str) else texts
        vectors = await asyncio.get_running_loop().run_in_executor(pool, encode, texts)
        if asked.get("encoding_format") == "base64":
            given = [base64.b64encode(vector.tobytes()).decode() for vector in vectors]
        else:
            given = list(vectors)
        data = [
            {"object": "embedding", "index": i, "embedding": vector}
            for i, vector in enumerate(given)
        ]
        body = orjson.dumps({"object": "list", "data": data}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(body, media_type="application/json")

    return Starlette(routes=[Route("/v1/embeddings", embeddings, methods=["POST"])])


def main() -> None:
    import uvicorn

    args = parse()
    os.environ |= {
        "PEER_MODEL": args.model,
        "PEER_THREADS": str(args.threads),
        "PEER_CALLS": str(args.calls),
        "OMP_NUM_THREADS": str(args.threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    uvicorn.run(
        "st_server:make_app",
        factory=True,
        host="127.0.0.1",
        port=args.port,
        workers=args.workers,
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
