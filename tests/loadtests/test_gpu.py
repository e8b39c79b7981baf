"""`python -m loadtests gpu` from end to end on the CPU, on a tiny checkpoint; and its table."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtests import gpu_command
from loadtests.__main__ import parser
from loadtests.errors import BadFile, BadOption
from loadtests.gpu_readings import Outcome, Reading

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from loadtests import gpu_bench, gpu_checkpoint, gpu_table  # noqa: E402 - they need torch

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[2]
NOT_ON_A_CPU = {"memory", "runs"}
OPTIONAL = {"sentence-transformers", "onnx"}
LIGHT = "kernel,single"  # all modules are loaded for any section


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole sentence-transformers folder around a tiny random BERT."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("source")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *(f"w{i}" for i in range(96)),
        "the",
        "how",
        "what",
    ]
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    transformers.BertModel(config).save_pretrained(folder)
    fast = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, model_max_length=64, **special
    ).save_pretrained(folder)
    types = ("Transformer", "Pooling")
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": i,
                    "name": str(i),
                    "path": f"{i}_{kind}" if i else "",
                    "type": f"sentence_transformers.models.{kind}",
                }
                for i, kind in enumerate(types)
            ]
        )
    )
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64}))
    return folder


@pytest.fixture(scope="module")
def checkpoint(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "checkpoint"
    assert gpu_checkpoint.prepare(folder, source=str(source)) > 0
    return folder


def _args(*given: str) -> argparse.Namespace:
    return parser().parse_args(["gpu", *given])


def test_a_run_on_the_cpu_goes_from_end_to_end(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every section gives readings or says why not, none fails, and the table of targets comes last."""
    out = tmp_path / "gpu.json"
    where = ("--checkpoint", str(checkpoint), "--out", str(out))
    args = _args("--device", "cpu", "--quick", "--seconds", "100000", *where)
    assert gpu_command.gpu(args) == 0
    content = json.loads(out.read_text(encoding="utf-8"))
    assert (content["device"], content["quick"]) == ("cpu", True)
    ends = {section["name"]: section["ended"] for section in content["sections"]}
    assert not [name for name, ended in ends.items() if ended and ended.startswith("failed")]
    skipped = {name for name, ended in ends.items() if ended and ended.startswith("skipped")}
    assert NOT_ON_A_CPU <= skipped <= NOT_ON_A_CPU | OPTIONAL
    assert all(s["readings"] for s in content["sections"] if s["name"] not in skipped)
    readings = [r for s in content["sections"] for r in s["readings"]]
    assert all(r["value"] == 1 for r in readings if r["what"] == "kernel is right")
    assert all(r["value"] > 0.9999 for r in readings if r["what"] == "parity min")
    assert {target["found"] for target in content["targets"]} == {None}
    last = capsys.readouterr().out.splitlines()[-6:]
    assert all(line.startswith("|") and "not measured" in line for line in last)


def test_it_loads_no_package_that_a_bare_gpu_machine_lacks(tmp_path: Path) -> None:
    """torch, transformers, numpy and tokenizers are enough: no pydantic, Ray, ONNX or plotting."""
    code = (
        "import sys; from loadtests.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as done: assert done.code == 0\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    command = [sys.executable, "-c", code, "gpu", "--device", "cpu", "--quick", "--only", LIGHT]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "gpu.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1].replace("'", '"')))
    assert {"torch", "transformers", "loadtests"} <= loaded
    unwanted = {"pydantic", "ray", "orjson", "matplotlib", "onnxruntime", "onnx", "openvino"}
    assert loaded & (unwanted | {"locust", "sentence_transformers"}) == set()


def test_the_prepared_checkpoint_is_half_and_brings_fp32s_vectors(
    checkpoint: Path, source: Path
) -> None:
    """Weights are FP16, the probe's vectors are FP32's unit vectors, and the facts are the source's."""
    from safetensors.torch import load_file

    from converters.checkpoint import read_checkpoint

    weights = load_file(checkpoint / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float16}
    found, probe = gpu_checkpoint.read(checkpoint)
    facts = read_checkpoint(source, name="source").facts
    assert (found.facts.pooling, found.facts.max_tokens) == (facts.pooling, facts.max_tokens)
    assert probe.vectors.dtype == np.float32
    assert len(probe.texts) == len(probe.vectors) == 400
    np.testing.assert_allclose(np.linalg.norm(probe.vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (["--device", "cpu"], "only with --quick"),
        (["--device", "cpu", "--quick", "--only", "speed"], "sections are kernel"),
    ],
)
def test_what_cannot_be_asked_is_refused(given: list[str], error: str) -> None:
    """The CPU is for smoke tests, and an unknown section is answered with those that exist."""
    with pytest.raises(BadOption, match=error):
        gpu_command.gpu(_args(*given))


def test_a_machine_without_a_gpu_is_told_what_to_try() -> None:
    """The default device is a GPU; where PyTorch finds none, the line says how to try it without."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BadOption, match="--device cpu --quick"):
        gpu_command.gpu(_args())


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    """A wrong --checkpoint is one line with the folder."""
    with pytest.raises(BadFile, match=str(tmp_path)):
        gpu_checkpoint.read(tmp_path)


def test_flops_are_those_of_a_bert() -> None:
    """MiniLM: 21.2 MFLOP a token and 9216 for each token that a token sees, as counted by hand."""
    shape = gpu_bench.MINILM
    assert shape.flops([1]) == pytest.approx(21.2e6 + 9216, rel=2e-3)
    assert shape.flops([100]) == pytest.approx(100 * (21.2e6 + 9216 * 100), rel=2e-3)
    assert shape.flops([100, 100]) == 2 * shape.flops([100])


def test_mixed_lengths_are_mixed_and_legal() -> None:
    """Most texts are short, some are long, and none exceeds the limit."""
    lengths = gpu_bench.mixed_lengths(2000, max_tokens=256)
    assert max(lengths) == 256
    assert 0.5 < np.mean(np.array(lengths) < 30) < 0.7


def _reading(what: str, value: float, **of: Any) -> Reading:
    return Reading(what=what, value=value, of=of)


def _outcome(*readings: Reading, ended: str | None = None) -> Outcome:
    return Outcome(name="all", seconds=1.0, readings=readings, ended=ended)


def test_targets_follow_from_readings() -> None:
    """Ratios and shares are those of the readings that they name, met or missed by the goal."""
    outcome = _outcome(
        _reading("tokens/s, texts in", 600.0, engine=gpu_table.OURS),
        _reading("tokens/s, texts in", 200.0, engine=gpu_table.PEER),
        _reading("tokens/s", 500.0, shape="MiniLM", engine="packed fp16"),
        _reading("tokens/s", 200.0, shape="MiniLM", engine="padded fp32"),
        _reading("matmul TFLOP/s", 700.0, dtype="float16"),
        _reading("matmul TFLOP/s", 800.0, dtype="bfloat16"),
        _reading("engine TFLOP/s", 480.0, shape="BERT-large", length=512, batch=256),
        _reading("engine TFLOP/s", 640.0, shape="BERT-large", length=128, batch=256),
        _reading("single text p50 ms", 0.9, engine="packed fp16 graphs"),
        _reading("fidelity p1", 0.99995, engine="packed float16"),
    )
    told = [target.told[2] for target in gpu_table.targets([outcome])]
    assert told == [
        "3 (met)",
        "2.5 (missed)",
        "0.6 (met)",
        "not measured",
        "0.9 (met)",
        "0.99995 (met)",
    ]


def test_nothing_measured_is_never_a_number() -> None:
    """Without readings every target is not measured, and the section's reason is told."""
    lines = gpu_table.lines([_outcome(ended="skipped: no GPU")], device="none", quick=False)
    assert lines[0] == "all: 0 readings in 1 s, skipped: no GPU"
    assert sum("not measured" in line for line in lines) == 6


def test_the_page_has_the_targets_and_the_commands() -> None:
    """Each row of the script's table is on docs/gpu.md, with its goal, and each command there is taken."""
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    for what, goal, _ in (target.told for target in gpu_table.targets([])):
        assert f"| {what} | {goal} |" in page
    commands = re.findall(r"^python3? -m loadtests (gpu .*)$", page, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        parser().parse_args(shlex.split(command.replace("$OUT", "out"), comments=True))


def test_one_replica_of_several_runs_until_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sharing process says that it is ready, waits for the word, and tells tokens a second."""
    import io

    from loadtests import gpu_sharing

    asked = {"device": "cpu", "quick": True, "batch_tokens": 64, "seconds": 0.05}
    monkeypatch.setattr(sys, "argv", ["gpu_sharing", json.dumps(asked)])
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n"))
    gpu_sharing.main()
    ready, rate = capsys.readouterr().out.split()
    assert ready == gpu_sharing.READY
    assert float(rate) > 0
