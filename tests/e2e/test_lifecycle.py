"""Start and stop: one line for what a person can mend, no process left behind."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.ports import free_port
from tests.e2e.harness import STOPPED_WITHIN_S, Server, StartServer, deploy_when_up, start_head
from tests.rungs import change

pytestmark = pytest.mark.e2e


def failed_start(*flags: str) -> str:
    """The one line on standard error of a server that cannot start."""
    (line,) = failed_late(*flags)
    return line


def failed_late(*flags: str, **environment: str) -> list[str]:
    """All lines of one that ends with the error of a person's setup, maybe after some steps."""
    done = subprocess.run(
        [sys.executable, "-m", "serve_app", *flags],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=STOPPED_WITHIN_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    return done.stderr.strip().splitlines()


def test_a_missing_folder_says_how_to_build(tmp_path: Path) -> None:
    """No artifacts: the line names the folder and the command that makes them."""
    line = failed_start("--artifacts", str(tmp_path / "none"))
    assert str(tmp_path / "none") in line
    assert "converters build" in line


def test_a_tampered_artifact_is_refused_by_name(real_artifacts: Path, tmp_path: Path) -> None:
    """One changed byte in a model file: the line names the variant and the file."""
    shutil.copytree(real_artifacts, tmp_path / "artifacts")
    with (tmp_path / "artifacts" / "onnx-int8" / "model.onnx").open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    line = failed_start("--artifacts", str(tmp_path / "artifacts"))
    assert "onnx-int8" in line
    assert "model.onnx" in line


def test_a_broken_manifest_is_refused_by_field(real_artifacts: Path, tmp_path: Path) -> None:
    """A manifest that lacks a field: the line names the file and the field."""
    shutil.copytree(real_artifacts / "onnx-fp32", tmp_path / "artifacts" / "onnx-fp32")
    manifest = tmp_path / "artifacts" / "onnx-fp32" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"fidelity"', '"fidelitee"'))
    assert "fidelit" in failed_start("--artifacts", str(tmp_path / "artifacts"))


def test_a_taken_port_is_named(real_artifacts: Path) -> None:
    """A port in use: the line names it and the flag for another."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = failed_start("--artifacts", str(real_artifacts), "--port", port)
    assert port in line
    assert "--port" in line


def test_a_port_that_haproxy_lacks_is_named(real_artifacts: Path) -> None:
    """A port of HAProxy's in use: the line is HAProxy's own alert, not the name of Ray's actor."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        flags = ("--artifacts", str(real_artifacts), "--variants", "onnx-int8", "--proxy")
        *steps, line = failed_late(*flags, RAY_SERVE_HAPROXY_STATS_PORT=port)
    assert steps == ["starting Ray", "deploying the ladder"]
    assert "Serve could not deploy" in line
    assert port in line
    assert "Address already in use" in line


def test_a_replica_that_does_not_start_tells_why(real_artifacts: Path, tmp_path: Path) -> None:
    """A variant that this machine cannot run, named all the same: the line is its engine's own error."""
    folder = tmp_path / "artifacts" / "litert-int8"
    shutil.copytree(real_artifacts / "onnx-int8", folder)
    change(folder, variant="litert-int8", runtime="litert")
    flags = ("--artifacts", str(folder.parent), "--variants", "litert-int8")
    *steps, line = failed_late(*flags)
    assert steps == ["starting Ray", "deploying the ladder"]
    assert line.startswith("error: litert-int8 does not start: ")
    assert "ArtifactError: " in line


@pytest.mark.parametrize("setting", ["cluster-cpus", "cluster-gpus"])
def test_a_host_of_its_own_waits_for_no_nodes(setting: str) -> None:
    """What would never be ready is refused by name and value before a cluster starts."""
    line = failed_start(f"--{setting}", "16")
    assert f"{setting.replace('-', '_')}: 16" in line


def test_a_variant_that_was_not_built_is_named(real_artifacts: Path) -> None:
    """--variants with an unknown name: the line names it and those that exist."""
    line = failed_start("--artifacts", str(real_artifacts), "--variants", "onnx-int4")
    assert "onnx-int4" in line
    assert "onnx-int8" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_no_process(start_server: StartServer, number: signal.Signals) -> None:
    """Ctrl-C, or SIGTERM, ends the server with exit code 0 and every process it started."""
    server: Server = start_server("--variants", "onnx-int8")
    assert server.stop(number) == []
    assert server.process.returncode == 0
    assert "Traceback" not in server.log.read_text()


def test_serve_run_works(
    real_artifacts: Path, serve_environment: dict[str, str], tmp_path: Path
) -> None:
    """`serve run serve_app.app:build_app` serves the same application."""
    port = free_port()
    config = _serve_yaml(tmp_path, real_artifacts, port)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("serve")),
                "run",
                "--address",
                "local",
                str(config),
            ],
            env=serve_environment,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
            # CI may run with SIGINT ignored, and `serve run` stops by nothing else.
            preexec_fn=lambda: signal.signal(  # noqa: PLW1509 (no thread runs here)
                signal.SIGINT, signal.default_int_handler
            ),
        )
    server = Server(f"http://127.0.0.1:{port}", process, tmp_path / "log")
    try:
        server.wait_until_ready()
    finally:
        left = server.stop()
    assert left == []


def test_serve_deploy_works(
    real_artifacts: Path, serve_environment: dict[str, str], tmp_path: Path
) -> None:
    """`serve deploy` of serve.yaml brings the application onto a running cluster."""
    port = free_port()
    config = _serve_yaml(tmp_path, real_artifacts, port)
    server, dashboard_port = start_head(
        tmp_path, http_port=port, ray_port=free_port(), environment=serve_environment
    )
    try:
        deploy_when_up(config, dashboard_port, serve_environment)
        server.wait_until_ready()
    finally:
        server.kill()


def _serve_yaml(folder: Path, artifacts: Path, port: int) -> Path:
    """The shipped serve.yaml with the test's port, artifacts and only the cheapest variant."""
    import yaml

    shipped = Path(__file__).parents[2] / "serve_app" / "serve.yaml"
    content = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    content["http_options"]["port"] = port
    (application,) = content["applications"]
    application["args"] |= {"artifacts": str(artifacts), "variants": "onnx-int8"}
    config = folder / "serve.yaml"
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    return config


def test_cluster_yaml_passes_rays_own_validation() -> None:
    """`ray up cluster.yaml` would accept the shipped file."""
    import yaml
    from ray.autoscaler._private.util import prepare_config, validate_config

    shipped = Path(__file__).parents[2] / "cluster.yaml"
    config = prepare_config(yaml.safe_load(shipped.read_text(encoding="utf-8")))
    validate_config(config)
    with pytest.raises(Exception, match="surprise"):
        validate_config(config | {"surprise": 1})
