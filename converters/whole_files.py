"""The files of a checkpoint: all there, whole, and none of them a pickle."""

from __future__ import annotations

from pathlib import Path

from converters.modules_json import Modules, read_json
from converters.transformer_facts import first_line
from serve_app.errors import ConversionError
from serve_app.manifest import TOKENIZER_NAME


def require_files(modules: Modules) -> None:
    """Check that everything is there that is read later.

    Raises:
        ConversionError: a file is missing, corrupt, or a pickle.
    """
    folder = modules.transformer
    if not (folder / "config.json").is_file():
        raise ConversionError(f"{folder}: config.json is missing; is it a Hugging Face folder?")
    if not (folder / TOKENIZER_NAME).is_file():
        raise ConversionError(
            f"{folder}: {TOKENIZER_NAME} is missing. Write it where the model runs today: "
            "`AutoTokenizer.from_pretrained(…).save_pretrained(…)`"
        )
    _require_weights(folder)
    for place in modules.dense_folders.values():
        _require_weights(place)


def _require_weights(folder: Path) -> None:
    """Whole safetensors files, and all the parts that an index names."""
    files = sorted(folder.glob("*.safetensors"))
    if not files and any(folder.glob("*.bin")):
        raise ConversionError(
            f"{folder}: only pickled weights (.bin), which can run code when loaded and are not "
            "read. Convert them where you trust them: "
            "`SentenceTransformer(…).save_pretrained(…)` or `AutoModel.from_pretrained(…)"
            ".save_pretrained(…)`, which write safetensors"
        )
    if not files:
        raise ConversionError(f"{folder}: no *.safetensors weights")
    for index in folder.glob("*.safetensors.index.json"):
        parts = set(read_json(index).get("weight_map", {}).values())
        if missing := sorted(parts - {file.name for file in files}):
            raise ConversionError(f"{folder}: {missing[0]} is missing; {index.name} names it")
    for file in files:
        _require_whole(file)


def _require_whole(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):  # reads the header and compares the file's length
            pass
    except (SafetensorError, OSError) as error:
        raise ConversionError(
            f"{file}: corrupt or cut short ({first_line(error)}); fetch it again"
        ) from error
