"""The Ray Serve application: a deployment for each variant of the ladder, the router in front.

The only module that imports Ray. `build_app` is the builder for `serve run` and `serve deploy`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.experimental.internal_kv import _internal_kv_del as kv_del
from ray.experimental.internal_kv import _internal_kv_get as kv_get
from ray.experimental.internal_kv import _internal_kv_list as kv_list
from ray.experimental.internal_kv import _internal_kv_put as kv_put
from ray.serve import Application
from ray.serve.config import AutoscalingContext, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.asgi import AsgiApp, asgi_app
from serve_app.calls import Call, Reply
from serve_app.compiled import require_current
from serve_app.direct import DirectTransport
from serve_app.dispatch import Transport
from serve_app.engines.memory import take_share
from serve_app.engines.opening import open_profiled
from serve_app.environment import ONE_HOST
from serve_app.errors import InternalError, ReplicaDied, ServeAppError, SetupError
from serve_app.http_server import HttpServer
from serve_app.listener import Address, Listener
from serve_app.manifest import verify
from serve_app.placement import (
    Capacity,
    GpuPlan,
    Plan,
    bounds,
    cores_of,
    gpu_variants,
    plan,
    plan_gpus,
    streams_of,
)
from serve_app.policy.batching import CALLS_EACH
from serve_app.policy.scaling import Bounds, Rules
from serve_app.quiet_stop import interrupt_once, stop_quietly
from serve_app.registry import Ladder, Rung, load_ladder
from serve_app.replica import Replica
from serve_app.router import Router
from serve_app.scaler import STANDING, TARGET, Attendant, Scaler
from serve_app.settings import Settings, parse_settings
from serve_app.wire import Welcome

log = logging.getLogger("ray.serve")

# Serve makes a log record of each request before it finds that nobody wants it, unless INFO is off.
LOGGING = {"enable_access_log": False, "log_level": "WARNING"}
# An engine takes all of a core that it is given. Where a router shares the cores, its short work goes
# first: everything else waits for it, and engines lose no time by it that they would not have lost later.
ENGINE_NICENESS = 10
# Ours queue; Serve's own limit of 5 would starve the batches.
MAX_ONGOING_CALLS = 64
MAX_ONGOING_REQUESTS = 10_000
CALLS_WANTED = 0.6  # by Serve's request counts, of the calls that a router sends a replica at most
BY_REQUESTS = {
    "metrics_interval_s": 2.0,
    "look_back_period_s": 6.0,
    "upscale_delay_s": 4.0,
}
# The routers have waited already, see `serve_app.policy.scaling`. Serve itself wakes a group of none
# while the requests of the last half minute are above zero: by their mean that would be for half a
# minute after each scaling to zero, by their minimum it is while some wait.
BY_DEMAND = {
    "aggregation_function": "min",
    "policy": {"policy_function": "serve_app.app:follow_board"},
    "upscale_delay_s": 0.0,
    "downscale_delay_s": 0.0,
}
BOARD = "embedding-server"
APPLICATION = "embeddings"
LOCALHOST = "127.0.0.1"
HostPort = tuple[str, int]
FIND_WITHIN_S = 5.0  # to be told where replicas listen
CONTROLLER_LOOK_S = 0.05  # until Serve's controller is there


class KvBoard:
    """Ray's own key-value store, in which Serve keeps its state too."""

    def __init__(self, app: str) -> None:
        self._app = f"{app}/"

    def read(self, key: str) -> str | None:
        found = kv_get(self._app + key, namespace=BOARD)
        return None if found is None else found.decode()

    def write(self, key: str, text: str) -> None:
        kv_put(self._app + key, text, namespace=BOARD)

    def delete(self, key: str) -> None:
        kv_del(self._app + key, namespace=BOARD)

    def keys(self, prefix: str) -> Sequence[str]:
        found = kv_list(self._app + prefix, namespace=BOARD)
        return [key.decode().removeprefix(self._app) for key in found]


def follow_board(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """A variant's size as the routers want it. Serve's controller calls it in its every loop.

    It travels there by value, so nothing of this package needs to be installed beside the controller.
    """
    board, name = KvBoard(context.app_name or ""), context.deployment_name
    try:
        standing = f"{context.target_num_replicas}/{context.current_num_replicas}"
        if context.policy_state.get(STANDING) != standing:
            board.write(STANDING + name, standing)
        wanted = board.read(TARGET + name)
    except RayError:  # the store is away for a while: sizes stay
        return context.target_num_replicas, {}
    size = context.target_num_replicas if wanted is None else int(wanted)
    return size, {STANDING: standing}


class VariantDeployment:
    """A replica of one variant, as Ray Serve runs it."""

    def __init__(self, rung: Rung, settings: Settings, *, gpu_share: float) -> None:
        os.nice(ENGINE_NICENESS)
        if rung.device == "cuda":
            take_share(gpu_share)
        manifest = verify(rung.folder)  # this node's files, not those of the node that planned
        streams = streams_of(rung, settings, cores=cores_of(settings))
        opened = open_profiled(
            rung.folder,
            manifest,
            threads=settings.threads,
            device=rung.device,
            streams=streams,
        )
        name = serve.get_replica_context().replica_id.unique_id
        host = ray.get_runtime_context().get_node_id()
        self._replica = Replica(
            opened.engine,
            manifest,
            name=name,
            measured=opened.measured,
            streams=streams,
            host=host,
        )
        self._listener = Listener(
            self._replica.embed, Welcome(name, self._replica.state.measured, host)
        )

    async def embed(self, call: Call) -> Reply:
        return await self._replica.embed(call)

    async def address(self) -> Address:
        """Where routers connect to: this host only, if the cluster is one host."""
        host = LOCALHOST if os.environ.get(ONE_HOST) else ray.util.get_node_ip_address()
        return await self._listener.address(host)

    async def __del__(self) -> None:
        """Serve awaits this before it ends the process."""
        await self._listener.leave()


class RayTransport:
    """Carries calls over a deployment handle; Serve picks the replica."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def __call__(self, call: Call) -> Reply:
        response = self._handle.embed.remote(call)
        try:
            reply: Reply = await response
        except asyncio.CancelledError:  # nobody waits any more: the replica shall know
            response.cancel()
            raise
        except RayTaskError as error:  # raised by our own code inside the replica
            if isinstance(error.cause, ServeAppError):
                raise error.cause from None
            log.exception("a replica failed a call")
            raise InternalError("the variant's engine failed; the log has the details") from error
        except (RayError, RayServeException) as error:  # dead, draining, or not there yet
            log.warning("a replica died with a call in flight: %s", str(error).splitlines()[0])
            raise ReplicaDied("the replica that held the request died") from error
        return reply


async def addresses(handle: DeploymentHandle) -> list[Address]:
    """Where a variant's replicas listen; those that do not answer are left out."""
    found = await handle.broadcast("address").results_async(
        timeout_s=FIND_WITHIN_S, return_exceptions=True
    )
    return [address for address in found if isinstance(address, Address)]


def _over_handles(settings: Settings) -> bool:
    """Whether calls go over Serve's handles: asked for; for Serve counts them; or for Ray encrypts them."""
    by_requests = settings.autoscaling == "requests"
    return settings.calls == "handle" or by_requests or os.environ.get("RAY_USE_TLS") == "1"


class RouterDeployment:
    """The router, as Ray Serve runs it: behind Serve's proxies, or on a port of its own."""

    def __init__(
        self,
        ladder: Ladder,
        handles: dict[str, DeploymentHandle],
        settings: Settings,
        scaling: tuple[list[Bounds], Rules],
        listen: HostPort | None,
    ) -> None:
        self._http = None if listen is None else HttpServer(*listen)
        transports: dict[str, Transport] = {n: RayTransport(h) for n, h in handles.items()}
        self._direct: dict[str, DirectTransport] = {}
        if not _over_handles(settings):
            self._direct = {
                name: DirectTransport(transports[name], partial(addresses, handle))
                for name, handle in handles.items()
            }
        self._router = Router(ladder, transports | self._direct, settings=settings)
        self._by_demand = settings.autoscaling == "demand"
        self._bounds, self._rules = scaling

    def __serve_build_asgi_app__(self) -> AsgiApp:
        return asgi_app(self._router.handle, beside=self._beside, leave=self._leave)

    def _beside(self) -> list[Coroutine[Any, Any, None]]:
        work = [self._attend(), *(direct.follow() for direct in self._direct.values())]
        return work if self._http is None else [*work, self._http.serve(self._router.handle)]

    def check_health(self) -> None:
        """Serve asks every few seconds, and replaces a router that raises."""
        if self._http is not None and self._http.is_down:
            raise InternalError("the router has stopped listening")

    async def _leave(self) -> None:
        if self._http is not None:  # Serve has waited for what came through its proxies
            await self._http.leave()

    async def _attend(self) -> None:
        """Let requests go where replicas are, and see to it that replicas are where work is."""
        attendant = Attendant(self._router, self._bounds)
        if self._by_demand:
            here = serve.get_replica_context()
            scaler = Scaler(
                KvBoard(here.app_name),
                router=here.replica_id.unique_id,
                bounds=self._bounds,
                rules=self._rules,
            )
            await attendant.follow(scaler)


def build_app(args: dict[str, Any]) -> Application:
    """The application, from settings by name, for Serve's proxies to send requests to.

    Raises:
        SettingsError: an unknown or impossible setting.
        ArtifactError: no artifacts, or a broken one.
        SetupError: see `compiled.require_current`.
    """
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        log.warning(
            "Serve's Python proxy costs most of the throughput; start Ray with the environment that "
            "`python -m serve_app env` prints to have HAProxy instead"
        )
    require_current()
    return _application(parse_settings(args), listen=None)


def _application(settings: Settings, *, listen: HostPort | None) -> Application:
    capacity = Capacity.of(ray.cluster_resources(), settings)
    ladder = load_ladder(settings.artifacts.resolve(), named=settings.variants, gpus=capacity.gpus)
    if ladder.caveat:
        log.warning(ladder.caveat)
    cpus = plan(
        cluster_cpus=capacity.cpus,
        variants=len(ladder.rungs),
        threads=settings.threads,
        routers=settings.routers,
    )
    gpus = plan_gpus(
        gpus=capacity.gpus,
        variants=gpu_variants(ladder.rungs),
        replicas_per_gpu=settings.replicas_per_gpu,
    )
    groups = bounds(ladder.rungs, cpus, settings, on_gpu=gpus)
    rules = Rules(slots=cpus.slots, quiet_s=settings.scale_down_s)
    variants = {
        group.variant: _variant(rung, group, cpus, gpus, settings=settings)
        for rung, group in zip(ladder.rungs, groups, strict=True)
    }
    router = serve.deployment(
        serve.ingress()(RouterDeployment),
        name="router",
        num_replicas=settings.routers,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options={"num_cpus": cpus.router_cpus},
    )
    return router.bind(ladder, variants, settings, (groups, rules), listen)


def _variant(
    rung: Rung, group: Bounds, cpus: Plan, gpus: GpuPlan, *, settings: Settings
) -> Application:
    gpu_share = gpus.share if rung.device == "cuda" else 0
    streams = streams_of(rung, settings, cores=cores_of(settings))
    by_requests = BY_REQUESTS | {
        "target_ongoing_requests": CALLS_WANTED * max(streams, CALLS_EACH),
        "downscale_delay_s": settings.scale_down_s,
    }
    deployment = serve.deployment(
        VariantDeployment,
        name=rung.manifest.variant,
        max_ongoing_requests=MAX_ONGOING_CALLS,
        autoscaling_config=(BY_DEMAND if settings.autoscaling == "demand" else by_requests)
        | {"min_replicas": group.minimum, "max_replicas": group.maximum},
        ray_actor_options={"num_cpus": cpus.replica_cpus, "num_gpus": gpu_share},
    )
    return deployment.bind(rung, settings, gpu_share=gpu_share)


def run_locally(
    given: dict[str, Any],
    *,
    listen: HostPort,
    num_cpus: int | None,
    dashboard: bool,
    proxy: bool,
    say: Callable[[str], None],
) -> None:
    """Start a cluster of its own and the application, announce it, wait for Ctrl-C, stop it all.

    Args:
        given: settings by name, already checked.
        listen: address and port for HTTP.
        num_cpus: CPUs that Ray may use; None for all.
        dashboard: whether Ray's dashboard runs too.
        proxy: whether Serve's proxy listens there; otherwise the only router does.
        say: tells the person who started it a line.

    Raises:
        SetupError: Serve could not deploy.
    """
    started_s = time.monotonic()
    say("starting Ray")
    try:
        ray.init(
            address="local",  # never a cluster that happens to run here
            num_cpus=num_cpus,
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        interrupt_once()
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        say("deploying the ladder")
        (_deploy_behind_proxy if proxy else _deploy)(given, listen)
        url = "http://{}:{}".format(*listen)
        say(f"ready in {time.monotonic() - started_s:.0f} s on {url} (Ctrl-C stops)")
        threading.Event().wait()
    except KeyboardInterrupt:
        say("stopping")
    except RuntimeError as error:
        raise SetupError(f"Serve could not deploy: {_why(error)}") from error
    finally:
        stop_quietly(serve.shutdown, ray.shutdown)


def _why(error: RuntimeError) -> str:
    """The line that tells what went wrong: HAProxy's alert, or the first of what the process raised."""
    raised = error.cause if isinstance(error, RayTaskError) else error
    lines = str(raised).strip().splitlines() or [repr(raised)]
    return next((line for line in lines if line.startswith("[ALERT]")), lines[0])


def _deploy(given: dict[str, Any], listen: HostPort) -> None:
    """Start Serve without proxies and run the application, whose router listens itself."""
    serve.start(proxy_location=ProxyLocation.Disabled, logging_config=LOGGING)
    _run(_application(parse_settings(given), listen=listen))


def _deploy_behind_proxy(given: dict[str, Any], listen: HostPort) -> None:
    """Start Serve and run the application, whose replicas start beside Serve's proxies, not after them."""
    beside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="serve-start")
    try:
        host, port = listen
        options = {"host": host, "port": port}
        started = beside.submit(serve.start, http_options=options, logging_config=LOGGING)
        application = build_app(given)
        while not serve.status().proxies:
            if started.done():
                started.result()  # raises what went wrong
            time.sleep(CONTROLLER_LOOK_S)
        _run(application)
        started.result()
    finally:
        beside.shutdown(wait=False)  # a Ctrl-C waits for no proxy


def _run(application: Application) -> None:
    """Deploy and wait until it is ready; of a replica that does not start, tell what it raised."""
    try:
        serve.run(application, name=APPLICATION, logging_config=LOGGING)
    except RuntimeError as error:
        application_status = serve.status().applications.get(APPLICATION)
        deployments = application_status.deployments if application_status else {}
        for name, deployment in deployments.items():
            if deployment.status == "DEPLOY_FAILED" and deployment.message:
                raised = deployment.message.strip().splitlines()[-1]
                raise SetupError(f"{name} does not start: {raised}") from error
        raise
