"""What `deploy/` promises of the server holds: metrics, settings, environment, ports and versions."""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serve_app.environment import cluster_environment
from serve_app.metrics import Outcome
from serve_app.settings import parse_settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
BOARD = json.loads((DEPLOY / "grafana.json").read_text(encoding="utf-8"))
SERVICE = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text(encoding="utf-8"))["spec"]
SERVE = yaml.safe_load(SERVICE["serveConfigV2"])
CLUSTER = SERVICE["rayClusterConfig"]
HEAD, WORKERS = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
GROUPS = [HEAD, *WORKERS]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
METRIC = re.compile(r"\bembeddings_\w+")
SELECTOR = re.compile(r"\b(embeddings_\w+)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)=~?"([^"]*)"')
BY = re.compile(r"\bby \(([^)]*)\)")


def _expressions() -> list[str]:
    return [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]


def _pod(group: dict[str, Any]) -> dict[str, Any]:
    return group["template"]["spec"]


def _container(group: dict[str, Any]) -> dict[str, Any]:
    (container,) = _pod(group)["containers"]
    return container


def _limit(group: dict[str, Any], resource: str) -> int:
    return int(_container(group)["resources"]["limits"].get(resource, 0))


def _served_by(group: dict[str, Any]) -> list[int]:
    ports = _container(group)["ports"]
    return [port["containerPort"] for port in ports if port["name"] == "serve"]


def _strings(found: Any) -> Iterator[str]:
    if isinstance(found, dict):
        for value in found.values():
            yield from _strings(value)
    elif isinstance(found, list):
        for value in found:
            yield from _strings(value)
    elif isinstance(found, str):
        yield found


@pytest.fixture
def exposed(served: Any) -> dict[str, set[str]]:
    """The labels of each metric that a router exposes after an answer and a refusal."""
    served.embed(variant="fake-int8")
    served.embed(latency_ms=1)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(served.ask("GET", "/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_the_dashboard_shows_each_metric_of_a_router_and_no_other(
    exposed: dict[str, set[str]],
) -> None:
    """A metric that is renamed, added or dropped is noticed here, not by whoever looks at an empty panel."""
    assert {name for expr in _expressions() for name in METRIC.findall(expr)} == set(exposed)
    asked = [name for text in _strings(BOARD["templating"]) for name in METRIC.findall(text)]
    assert asked
    assert set(asked) <= set(exposed)


def test_the_dashboard_asks_for_labels_that_its_metrics_have(exposed: dict[str, set[str]]) -> None:
    """A matcher or a grouping by a label that is not there gives no error, just nothing."""
    matched = [found for expr in _expressions() for found in SELECTOR.findall(expr)]
    assert matched
    for metric, inside in matched:
        for label, value in MATCHER.findall(inside):
            assert label in exposed[metric]
            assert label != "outcome" or value in set(Outcome)
    for expr in _expressions():
        wanted = {label.strip() for by in BY.findall(expr) for label in by.split(",")}
        assert all(wanted <= exposed[name] for name in METRIC.findall(expr) if wanted), expr


def test_the_dashboard_can_be_imported_with_any_prometheus() -> None:
    """Each panel, target and variable takes its data from the one input that the import asks for."""
    (asked,) = BOARD["__inputs"]
    assert (asked["type"], asked["pluginId"]) == ("datasource", "prometheus")
    things = [*BOARD["panels"], *BOARD["templating"]["list"]]
    things += [target for panel in BOARD["panels"] for target in panel["targets"]]
    assert {thing["datasource"]["uid"] for thing in things} == {f"${{{asked['name']}}}"}
    assert "id" not in BOARD  # it would take another dashboard's place


def test_panels_have_titles_of_their_own_and_fit_beside_each_other() -> None:
    """No two panels share a title, an id or a place on the grid of 24 columns."""
    panels = BOARD["panels"]
    titles = [panel["title"] for panel in panels]
    assert all(titles)
    assert len(set(titles)) == len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(p["x"] >= 0 and p["w"] > 0 and p["h"] > 0 and p["x"] + p["w"] <= 24 for p in places)
    for a, b in itertools.combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or below, (a, b)


def test_panels_have_units() -> None:
    """Seconds are shown as seconds, milliseconds as such, and each panel says what its numbers are."""
    for panel in BOARD["panels"]:
        unit = panel["fieldConfig"]["defaults"]["unit"]
        names = {name for t in panel["targets"] for name in METRIC.findall(t["expr"])}
        if any("_seconds" in name for name in names):
            assert unit == "s", panel["title"]
        elif any(name.endswith("_ms") for name in names):
            assert unit == "ms", panel["title"]
        else:
            assert unit not in {"", "none", "s", "ms"}, panel["title"]


def test_kuberay_gets_the_application_of_serve_yaml() -> None:
    """All but the address that it listens on, its paths and its settings is the same."""
    known = yaml.safe_load((ROOT / "serve_app" / "serve.yaml").read_text(encoding="utf-8"))
    assert SERVE["http_options"] == known["http_options"] | {"host": "0.0.0.0"}  # noqa: S104
    for name in ("proxy_location", "logging_config"):
        assert SERVE[name] == known[name]
    (ours,), (theirs,) = SERVE["applications"], known["applications"]
    assert ours["args"].keys() >= theirs["args"].keys()
    assert {**ours, "args": None} == {**theirs, "args": None}
    assert SERVE.keys() == known.keys()


def test_the_import_path_exists() -> None:
    """Read, not imported: Ray would come with it."""
    (application,) = SERVE["applications"]
    module, function = application["import_path"].split(":")
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    defined = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    assert function in {node.name for node in defined}


def test_the_server_takes_kuberays_settings() -> None:
    """They parse, with as many cores as each worker has, and /ready stays true while variants rest."""
    settings = parse_settings(SERVE["applications"][0]["args"])
    assert {settings.cores} == {_limit(group, "cpu") for group in WORKERS}
    assert settings.min_replicas >= 1
    assert settings.artifacts.is_absolute()
    assert f"--out {settings.artifacts}\n" in DOCKERFILE


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.get("groupName", "head"))
def test_ray_starts_with_the_servers_environment(
    group: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each container has what `python -m serve_app env` prints where there are as many cores."""
    monkeypatch.setattr(os, "cpu_count", lambda: _limit(group, "cpu"))
    variables = _container(group)["env"]
    found = {variable["name"]: variable["value"] for variable in variables}
    assert len(found) == len(variables)
    assert found == cluster_environment(haproxy=True)


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.get("groupName", "head"))
def test_the_keys_are_where_the_router_looks(group: dict[str, Any]) -> None:
    """Routers may run on any node: each has the Secret's file at the path that the settings name."""
    (mount,) = _container(group)["volumeMounts"]
    (volume,) = _pod(group)["volumes"]
    assert mount["name"] == volume["name"]
    assert mount["readOnly"] is True
    (item,) = volume["secret"]["items"]
    wanted = SERVE["applications"][0]["args"]["api_keys_file"]
    assert f"{mount['mountPath']}/{item['path']}" == wanted
    secret = f"create secret generic {volume['secret']['secretName']} --from-file={item['key']}="
    assert secret in (DEPLOY / "README.md").read_text(encoding="utf-8")


def test_ports_and_paths_agree(served: Any) -> None:
    """Containers, probes and Prometheus ask Serve's port, for paths that need no key."""
    port = SERVE["http_options"]["port"]
    assert [_served_by(group) for group in GROUPS] == [[port]] * len(GROUPS)
    probes = [_container(group)["readinessProbe"]["httpGet"] for group in WORKERS]
    assert all(probe == {"path": "/ready", "port": port} for probe in probes)
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text("utf-8"))["scrape_configs"]
    (targets,) = job["static_configs"]
    name = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text("utf-8"))["metadata"]["name"]
    assert targets["targets"] == [f"{name}-serve-svc:{port}"]
    for path in ("/ready", job["metrics_path"]):
        assert served.ask("GET", path).status_code == 200


def test_sizes_are_planned_for_what_the_groups_may_have() -> None:
    """Neither for fewer CPUs and GPUs nor for more than ever come, and not for the head's."""
    settings = parse_settings(SERVE["applications"][0]["args"])
    assert HEAD["rayStartParams"]["num-cpus"] == "0"
    without_gpus = [group for group in WORKERS if not _limit(group, "nvidia.com/gpu")]
    groups = WORKERS if settings.cluster_gpus else without_gpus
    most = {
        resource: sum(group["maxReplicas"] * _limit(group, resource) for group in groups)
        for resource in ("cpu", "nvidia.com/gpu")
    }
    assert (settings.cluster_cpus, settings.cluster_gpus) == tuple(most.values())


def test_groups_are_bounded_and_get_what_they_ask_for() -> None:
    """Sizes are in order, limits are requests, and one image and one GPU group are there."""
    assert CLUSTER["enableInTreeAutoscaling"] is True
    for group in WORKERS:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in GROUPS:
        resources = _container(group)["resources"]
        assert resources["limits"] == resources["requests"]
    assert len({_container(group)["image"] for group in GROUPS}) == 1
    (gpu,) = [group for group in WORKERS if _limit(group, "nvidia.com/gpu")]
    assert (gpu["minReplicas"], _limit(gpu, "nvidia.com/gpu")) == (0, 1)


def test_versions_are_those_of_the_pins() -> None:
    """The image installs by constraints.txt; what names a version of Ray or torch names the pinned one."""
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    )
    assert CLUSTER["rayVersion"] == pins["ray"]
    for name, version in re.findall(r"\b(ray|torch)(?:\[\w+\])?(?:==|:)([\d.]+\d)", DOCKERFILE):
        assert version == pins[name]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"ray[serve]=={pins['ray']}" in project["dependencies"]
    install = re.search(r"pip install .*--constraint constraints\.txt '\.\[([\w,]+)\]'", DOCKERFILE)
    assert install is not None
    assert set(install[1].split(",")) <= set(project["optional-dependencies"])
    image = _container(HEAD)["image"]
    assert image.endswith(f":{project['version']}")
    assert f"-t {image} " in DOCKERFILE


def test_the_image_copies_what_there_is() -> None:
    """Each source of a COPY is in the repository, and the python is one that the project takes."""
    copied = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = [source for line in copied for source in line.split()]
    assert sources
    assert all((ROOT / source).exists() for source in sources)
    found = re.search(r"^FROM python:3\.(\d+)-slim$", DOCKERFILE, re.MULTILINE)
    assert found is not None
    assert int(found[1]) >= 11
