"""`python -m converters` in this process, from its arguments to its exit code, on a tiny model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: nothing can be converted")
pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from converters import fidelity, latency, recover  # noqa: E402 - they need what is skipped for above
from converters.__main__ import main  # noqa: E402
from converters.checkpoint import read_checkpoint  # noqa: E402
from converters.recipes import RECIPES  # noqa: E402
from serve_app.engines.base import open_engine  # noqa: E402
from serve_app.engines.measure import hardware_name  # noqa: E402
from serve_app.manifest import (  # noqa: E402
    MANIFEST_NAME,
    read_manifest,
    verify,
    write_manifest,
)

pytestmark = pytest.mark.model

FP32, INT8 = "onnx-fp32", "onnx-int8"
LEARNING = 23  # texts: of sixty half calibrate, of these every fourth judges
OWN_CODE = """
from transformers import BertConfig, BertModel
class OddConfig(BertConfig):
    model_type = "odd"
class OddModel(BertModel):
    config_class = OddConfig
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    lines: list[str]  # on standard error


Run = Callable[..., Done]


@pytest.fixture
def corpus(tiny_texts: list[str], tmp_path: Path) -> Path:
    file = tmp_path / "corpus.txt"
    file.write_text("\n".join(tiny_texts))
    return file


@pytest.fixture
def run(
    corpus: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run a command on the tiny checkpoint, or another."""

    def run(*words: object, checkpoint: Path = tiny_checkpoint) -> Done:
        capsys.readouterr()
        source = ["--checkpoint", str(checkpoint), "--corpus", str(corpus)]
        monkeypatch.setattr(sys, "argv", ["converters", *map(str, words), *source])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Done(code, capsys.readouterr().err.splitlines())

    return run


def embed(folder: Path, corpus: Path, checkpoint: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the corpus's probe half, by an artifact's file and by FP32."""
    opened = read_checkpoint(checkpoint, name=checkpoint.name)
    ids = fidelity.tokenize(opened, corpus.read_text().splitlines()[1::2])
    engine = open_engine(folder, read_manifest(folder))
    reference = fidelity.reference_engine(opened)
    return fidelity.embed_sorted(engine, ids), fidelity.embed_sorted(reference, ids)


def test_recovery_tells_fidelity_before_and_after(
    run: Run, corpus: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`before` is the p1 of the graph that a build without --recover writes, `after` the kept one's."""
    monkeypatch.setattr(recover, "distance", lambda _, file, __: file.name != "recovered.onnx")
    plain, better = tmp_path / "plain", tmp_path / "better"
    assert run("build", "--variants", INT8, "--out", plain).code == 0
    options = ("--recover", "--recover-minutes", 1 / 60)
    done = run("build", "--variants", INT8, *options, "--out", better)
    assert done.code == 0
    before, after = (read_manifest(folder / INT8) for folder in (plain, better))
    assert before.recovered is None
    assert after.recovered is not None
    assert after.recovered.minutes == 1 / 60
    assert after.recovered.texts == LEARNING
    found, reference = embed(plain / INT8, corpus, tiny_checkpoint)
    expected = float(np.percentile(fidelity.cosines(found, reference), 1))
    assert after.recovered.p1_before == pytest.approx(expected, abs=1e-9)
    found, reference = embed(better / INT8, corpus, tiny_checkpoint)
    expected = float(np.percentile(fidelity.cosines(found, reference), 1))
    assert after.recovered.p1_after == after.fidelity.p1 == pytest.approx(expected, abs=1e-9)
    told = f"fidelity {after.recovered.p1_before:.5f} to {after.recovered.p1_after:.5f}"
    assert any(told in line for line in done.lines)
    assert after.files["model.onnx"].sha256 != before.files["model.onnx"].sha256


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--recover-minutes", 0), "--recover-minutes must be above 0"),
        (("--variants", FP32), "--recover changes onnx-int8 and openvino-int8: build one of them"),
    ],
)
def test_a_recovery_of_nothing_is_refused(
    run: Run, tmp_path: Path, options: tuple[object, ...], problem: str
) -> None:
    """No time, or no static INT8 among what is built: one line, before any work."""
    done = run("build", "--recover", *options, "--out", tmp_path / "out")
    assert done.code == 2
    assert done.lines[-1].startswith(f"error: {problem}")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def own_code(
    make_checkpoint: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A checkpoint whose model is Python code beside it."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = make_checkpoint()
    (folder / "odd.py").write_text(OWN_CODE)
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "odd.OddConfig", "AutoModel": "odd.OddModel"}
    changed = config | {"model_type": "odd", "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(changed))
    return folder


@pytest.fixture
def four_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that can be built here are FP32 as a graph, and three torch variants."""
    for name, recipe in RECIPES.items():
        if name not in {FP32, "torch-fp16", "torch-bf16", "torch-int8-dynamic"}:
            monkeypatch.setitem(RECIPES, name, replace(recipe, unavailable=lambda: "no luck"))


@pytest.mark.usefixtures("four_recipes")
def test_what_a_checkpoint_cannot_be_does_not_stop_the_rest(
    run: Run, own_code: Path, tmp_path: Path
) -> None:
    """With `all`, a variant impossible for this checkpoint is a line with the reason; asked by name, an error."""
    out = tmp_path / "artifacts"
    build = ("build", "--trust-remote-code", "--out", out)
    done = run(*build, "--variants", "all", checkpoint=own_code)
    assert done.code == 0
    refused = [line for line in done.lines if "not built: PyTorch would run" in line]
    assert [line.partition(":")[0] for line in refused] == [
        "torch-fp16",
        "torch-bf16",
        "torch-int8-dynamic",
    ]
    assert [file.parent.name for file in out.glob(f"*/{MANIFEST_NAME}")] == [FP32]
    again = run(*build, "--variants", "all", "--missing", checkpoint=own_code)
    assert again.code == 0
    named = run(*build, "--variants", f"torch-fp16,{FP32}", checkpoint=own_code)
    assert named.code == 2
    assert named.lines[-1].startswith("error: torch-fp16: PyTorch would run the checkpoint's own")
    assert verify(out / FP32).variant == FP32


def test_nothing_built_is_an_error(
    run: Run, own_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no variant can be built, each says why, and the command fails."""
    for name, recipe in RECIPES.items():
        if name != "torch-bf16":
            monkeypatch.setitem(RECIPES, name, replace(recipe, unavailable=lambda: "no luck"))
    words = ("build", "--variants", "all", "--trust-remote-code", "--out", tmp_path / "out")
    done = run(*words, checkpoint=own_code)
    assert done.code == 2
    assert done.lines[-2].startswith("torch-bf16: not built: PyTorch would run")
    assert done.lines[-1] == "error: nothing could be built"


def test_a_shared_graph_fails_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the export fails, it is not tried again for each variant made from it."""
    from converters import to_onnx
    from serve_app.errors import ConversionError

    tried = []

    def export(*_: object, **__: object) -> None:
        tried.append(1)
        raise ConversionError("no such operator")

    monkeypatch.setattr(to_onnx, "export", export)
    done = run("build", "--variants", f"{FP32},{INT8}", "--out", tmp_path / "out")
    assert done.code == 2
    assert done.lines[-1] == "error: onnx-fp32: no such operator; onnx-int8: no such operator"
    assert len(tried) == 1


@pytest.fixture
def hub_file(run: Run, tmp_path: Path) -> Path:
    """An ONNX file as a hub may ship it: here, our own export."""
    assert run("build", "--variants", FP32, "--out", tmp_path / "made").code == 0
    return tmp_path / "made" / FP32 / "model.onnx"


def test_an_imported_file_that_misses_its_gate_is_kept_and_marked(
    run: Run, hub_file: Path, tmp_path: Path
) -> None:
    """Into an empty folder: exit 0, the artifact whole, and a line with the reason."""
    model = onnx.load(hub_file)
    for weight in model.graph.initializer:
        if len(weight.dims) == 2 and 32 in weight.dims:
            values = onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.5), weight.name))
    onnx.save(model, tmp_path / "worse.onnx")
    out = tmp_path / "artifacts"
    done = run("import", tmp_path / "worse.onnx", "--out", out)
    assert done.code == 0, done.lines
    name = "onnx-imported-fp32"
    (line,) = [line for line in done.lines if line.startswith(f"{name}: built, off the ladder")]
    assert "misses the fp32 gate" in line
    assert str(verify(out / name).off_ladder) in line


def test_a_file_that_does_not_fit_is_an_error(run: Run, hub_file: Path, tmp_path: Path) -> None:
    """Nothing is written for a file that is no embedding model: exit 2 and the reason."""
    model = onnx.load(hub_file)
    model.graph.input[0].name = "pixels"
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == "input_ids" else name for name in node.input]
    onnx.save(model, tmp_path / "image.onnx")
    done = run("import", tmp_path / "image.onnx", "--out", tmp_path / "artifacts")
    assert done.code == 2
    assert done.lines[-1].startswith("error: onnx-imported-fp32: ")
    assert "pixels" in done.lines[-1]
    assert not list((tmp_path / "artifacts").glob("*/*"))


def test_profiles_of_a_folder_come_from_one_run(run: Run, tmp_path: Path) -> None:
    """A variant built into a folder has the others' profiles measured again beside its own."""
    out = tmp_path / "artifacts"
    assert run("build", "--variants", FP32, "--out", out).code == 0
    first = read_manifest(out / FP32)
    assert run("build", "--variants", "onnx-fp16", "--out", out).code == 0
    again, beside = read_manifest(out / FP32), read_manifest(out / "onnx-fp16")
    assert again == replace(first, profile=again.profile)
    assert again.profile.grid != first.profile.grid
    assert [(c.texts, c.tokens) for c in again.profile.grid] == [
        (c.texts, c.tokens) for c in beside.profile.grid
    ]
    assert again.profile.load_ms == first.profile.load_ms


def test_the_table_knows_the_gpu_that_is_here(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a GPU is, a variant that needs one is on the ladder that `list` shows."""
    manifest = read_manifest(artifacts / "fake-bf16")
    write_manifest(artifacts / "fake-bf16", replace(manifest, runtime="torch", precision="fp16"))
    monkeypatch.setattr(sys, "argv", ["converters", "list", "--out", str(artifacts)])
    rows = []
    for gpus in (0, 1):
        monkeypatch.setattr(latency, "gpu_count", lambda gpus=gpus: gpus)
        main()
        told = capsys.readouterr().out.splitlines()
        rows.append(next(line for line in told if "fake-bf16" in line))
    assert "needs a GPU, and this cluster has none" in rows[0]
    assert rows[1].rstrip(" |").endswith("yes")


def test_missing_builds_nothing_beside_another_model(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make serve` on a folder of one's own model leaves it alone, and says how to add to it."""
    before = sorted(artifacts.rglob("*"))
    for name in ("fake-fp32", "fake-bf16", "fake-int8"):
        manifest = read_manifest(artifacts / name)
        profile = replace(manifest.profile, hardware=hardware_name("cpu"))
        write_manifest(artifacts / name, replace(manifest, profile=profile))
    monkeypatch.setattr(sys, "argv", ["converters", "build", "--missing", "--out", str(artifacts)])
    main()
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds tiny" in line
    assert "--checkpoint" in line
    assert sorted(artifacts.rglob("*")) == before
