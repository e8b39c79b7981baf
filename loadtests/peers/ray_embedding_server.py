"""ray-embedding on a stock Ray Serve of its own. Runs in the peer's own environment.

Its node recycler wants a resource named head_node, and with the router and the model more logical CPUs
than two cores have. It also wants a key's file to restart nodes whose GPU has failed; here there are
none, so it gets this file, which it only looks for.
"""

import argparse
import signal
import threading

import ray
from ray import serve
from ray_embedding.deploy import build_app
from ray_embedding.dto import (
    AppConfig,
    ModelDeploymentConfig,
    ModelRouterConfig,
    NodeRecyclerConfig,
)

LOGICAL_CPUS = 8
PREFIX = "embed"  # its route is /PREFIX/v1/embeddings


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    ray.init(
        address="local",
        num_cpus=LOGICAL_CPUS,
        resources={"head_node": 1},
        include_dashboard=False,
        log_to_driver=False,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serve.start(http_options={"host": "127.0.0.1", "port": args.port})
    model = ModelDeploymentConfig(
        model=args.model,
        served_model_name=args.name,
        device="cpu",
        matryoshka_dim=None,
        deployment="model",
    )
    router = ModelRouterConfig(deployment="router", path_prefix=[PREFIX])
    recycler = NodeRecyclerConfig(ssh_private_key=__file__)
    config = AppConfig(model_router=router, node_recycler=recycler, models=[model])
    try:
        serve.run(build_app(config), name="embedding")
        threading.Event().wait()
    except KeyboardInterrupt:
        ray.shutdown()


if __name__ == "__main__":
    main()
