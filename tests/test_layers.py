"""Imports point in one direction, and heavy packages are loaded only where they are used."""

import ast
import functools
import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "serve_app").rglob("*.py"))
ENGINES_WITH_RUNTIMES = {
    "onnx_engine",
    "openvino_engine",
    "litert_engine",
    "torch_engine",
    "torch_int8_engine",
    "mixed_precision",
    "pooling",
}
PACKED = "serve_app.engines.packed."  # torch's


def _module(source: Path) -> str:
    parts = source.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = [_module(source) for source in SOURCES]
WITHOUT_RUNTIMES = [
    m
    for m in MODULES
    if m != "serve_app.app"
    and m.split(".")[-1] not in ENGINES_WITH_RUNTIMES
    and not m.startswith(PACKED)
]
LOWEST = {"serve_app.errors", "serve_app.manifest", "serve_app.promises"}
POLICY = [m for m in MODULES if m.startswith("serve_app.policy")]

LOADED = """
import json, sys
before = set(sys.modules)
for name in sys.argv[1:]:
    __import__(name)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@functools.cache
def _loaded_by(*modules: str) -> set[str]:
    """What a fresh interpreter has in `sys.modules` after these imports."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout))


def _top(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def _ours(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("serve_app.")}


@pytest.mark.parametrize("module", sorted(LOWEST))
def test_the_lowest_layer_stands_on_the_standard_library(module: str) -> None:
    """Errors and manifest import nothing but each other, not even pydantic: converters use them."""
    loaded = _loaded_by(module)
    assert _top(loaded) - sys.stdlib_module_names == {"serve_app"}
    assert _ours(loaded) <= LOWEST


def test_the_policy_is_pure() -> None:
    """The whole policy loads the standard library, errors and manifest; no numpy, no pydantic."""
    loaded = _loaded_by(*POLICY)
    assert len(POLICY) >= 6
    assert _top(loaded) - sys.stdlib_module_names == {"serve_app"}
    assert _ours(loaded) <= {*LOWEST, *POLICY}


@pytest.mark.parametrize(
    ("layer", "upper"),
    [
        ("serve_app.engines.base", "policy registry replica dispatch router app settings"),
        ("serve_app.engines.tokenization", "policy registry replica dispatch router app settings"),
        ("serve_app.engines.opening", "policy registry replica dispatch router app settings"),
        ("serve_app.registry", "policy replica dispatch router app settings"),
        ("serve_app.replica", "registry dispatch router app settings api"),
        ("serve_app.dispatch", "registry router app settings api"),
        ("serve_app.router", "app"),
    ],
)
def test_no_layer_imports_one_above_it(layer: str, upper: str) -> None:
    """errors, manifest ← policy, engines, registry ← router, dispatch, replica ← app."""
    above = tuple(f"serve_app.{name}" for name in upper.split())
    assert {m for m in _loaded_by(layer) if m.startswith(above)} == set()


def test_only_the_app_imports_ray_and_only_engines_their_runtimes() -> None:
    """Everything but the app and the real engines, in one interpreter: nothing heavy, no converter."""
    loaded = _loaded_by(*WITHOUT_RUNTIMES)
    assert {"serve_app.router", "serve_app.__main__", "serve_app.engines.base"} <= loaded
    heavy = {"ray", "torch", "transformers", "onnxruntime", "openvino", "converters", "loadtests"}
    assert _top(loaded) & heavy == set()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "ai_edge_litert"])
def test_a_cpu_replica_never_loads_torch(runtime: str) -> None:
    """Opening an ONNX, OpenVINO or LiteRT variant costs no memory for torch, and needs no transformers."""
    if importlib.util.find_spec(runtime) is None:
        pytest.skip(f"{runtime} is not installed")
    engine = {"onnxruntime": "onnx", "ai_edge_litert": "litert"}.get(runtime, runtime)
    loaded = _top(_loaded_by(f"serve_app.engines.{engine}_engine", "serve_app.replica"))
    assert runtime in loaded
    assert loaded & {"torch", "transformers", "ray", "converters"} == set()


def _imports(source: Path) -> dict[str, set[bool]]:
    """Top-level packages that a file imports, and whether at the top (True) or in a function."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found: dict[str, set[bool]] = {}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in names:
            found.setdefault(name.partition(".")[0], set()).add(id(node) not in inside)
    return found


def test_ray_is_imported_in_one_file_only() -> None:
    """`import ray` stands in app.py and nowhere else."""
    places = {
        s.relative_to(ROOT).as_posix(): i["ray"] for s in SOURCES if "ray" in (i := _imports(s))
    }
    assert places == {"serve_app/app.py": {True}}


def test_the_server_knows_no_converter_and_no_load_test() -> None:
    """Nothing that is served needs what builds or measures it, not even inside a function."""
    imported = {package for source in SOURCES for package in _imports(source)}
    assert imported & {"converters", "loadtests", "tests", "locust", "pickle"} == set()


@pytest.mark.parametrize("banned", ["time", "random", "logging", "asyncio", "datetime", "os"])
def test_the_policy_has_no_clock_no_chance_and_no_log(banned: str) -> None:
    """What a decision depends on comes in as an argument."""
    policy = [s for s in SOURCES if s.parent.name == "policy"]
    assert [s.name for s in policy if banned in _imports(s)] == []


def test_ray_cannot_be_started_from_here() -> None:
    """Whoever calls `ray.init` in a unit test hears of it at once, and no cluster starts."""
    if sys.modules["ray"] is None:
        with pytest.raises(ImportError):
            importlib.import_module("ray")
    else:
        with pytest.raises(AssertionError, match="must not start Ray"):
            sys.modules["ray"].init()
