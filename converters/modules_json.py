"""What a sentence-transformers folder says of its model: modules, prompts, lengths of vectors.

`modules.json` lists a Transformer, a Pooling, and what follows it. Two layouts of the pooling are
read: one flag a mode (up to 5.x), and one `pooling_mode`. Anything that would change vectors and is
not understood is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from serve_app.errors import ConversionError
from serve_app.manifest import HeadStep, Pooling, Prompts

WEIGHTS_NAME = "model.safetensors"
SETTINGS_NAME = "config_sentence_transformers.json"
POOLINGS = ", ".join(get_args(Pooling))
ACTIVATIONS: Mapping[str, tuple[HeadStep, ...]] = {
    "Identity": (),
    "Tanh": ("tanh",),
    "ReLU": ("relu",),
    "GELU": ("gelu",),
    "Sigmoid": ("sigmoid",),
    "SiLU": ("silu",),
    "LeakyReLU": ("leaky_relu",),
}
DEFAULT_ACTIVATION = "torch.nn.modules.activation.Tanh"  # sentence-transformers' own
DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # in the order of its encode_document
MATRYOSHKA_KEYS = ("matryoshka_dims", "matryoshka_dimensions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Modules:
    """The modules of a checkpoint, as paths and steps."""

    transformer: Path  # the folder of configuration, weights and tokenizer
    pooling: Pooling
    head: tuple[HeadStep, ...] = ()
    dense: Mapping[int, Path] | None = None  # position in the head -> folder of its weights
    dims: int | None = None  # of the last dense module, or None: as many as the transformer's

    @property
    def dense_folders(self) -> Mapping[int, Path]:
        return self.dense or {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `config_sentence_transformers.json` and `config.json` say beside the modules."""

    prompts: Prompts
    matryoshka_dims: tuple[int, ...]
    truncate_dim: int | None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object or list of a checkpoint.

    Raises:
        ConversionError: it cannot be read.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{file}: cannot be read as JSON ({error})") from error
    return cast("dict[str, Any]", content)


def read_modules(folder: Path, *, pooling: str | None) -> Modules:
    """The modules of a folder, or those of a plain transformers folder with the pooling given.

    Raises:
        ConversionError: the pooling is not known, or a module is not supported.
    """
    if pooling is not None and pooling not in get_args(Pooling):
        raise ConversionError(f"pooling {pooling!r} is not one of {POOLINGS}")
    file = folder / "modules.json"
    if file.exists():
        found = _modules(folder, cast("list[dict[str, str]]", read_json(file)))
        if pooling not in {None, found.pooling}:
            raise ConversionError(
                f"{folder}: its modules.json states pooling {found.pooling}, not {pooling}; "
                "leave --pooling out"
            )
        return found
    if pooling is None:
        raise ConversionError(
            f"{folder}: no modules.json, so its pooling is not known; state the one that it was "
            f"trained with, as --pooling {POOLINGS.replace(', ', '|')}"
        )
    return Modules(transformer=folder, pooling=cast("Pooling", pooling))


def read_settings(folder: Path, config: Mapping[str, Any]) -> Settings:
    """Prompts and lengths of vectors; `config` is the transformer's config.json."""
    file = folder / SETTINGS_NAME
    stated = read_json(file) if file.exists() else {}
    prompts = stated.get("prompts") or {}
    documents = (prompts[name] for name in DOCUMENT_PROMPTS if prompts.get(name))
    dims = next((s[key] for s in (stated, config) for key in MATRYOSHKA_KEYS if s.get(key)), ())
    return Settings(
        prompts=Prompts(
            query=prompts.get("query") or "",
            document=next(documents, ""),
            default=prompts.get(stated.get("default_prompt_name")) or "",
        ),
        matryoshka_dims=tuple(sorted(int(d) for d in dims)),
        truncate_dim=stated.get("truncate_dim"),
    )


def _modules(folder: Path, listed: list[dict[str, str]]) -> Modules:
    kinds = [module["type"].rpartition(".")[2] for module in listed]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise ConversionError(
            f"{folder}: modules.json lists {', '.join(kinds) or 'nothing'}; only models that start "
            "with Transformer, Pooling are supported"
        )
    head: list[HeadStep] = []
    dense: dict[int, Path] = {}
    dims = None
    for kind, module in list(zip(kinds, listed, strict=True))[2:]:
        place = folder / module["path"]
        if kind == "Dense":
            dense[len(head)] = place
            config = _vector_config(place)
            dims = int(config["out_features"])
            head += ["dense", *_activation(place, config)]
        elif kind == "Normalize":
            _vector_config(place)
            head.append("normalize")
        elif kind != "Dropout":  # which does nothing outside training
            raise ConversionError(f"{folder}: module {kind} is not supported")
    while head and head[-1] == "normalize":  # every vector gets unit length in the end
        head.pop()
    return Modules(
        transformer=folder / listed[0]["path"],
        pooling=_pooling(folder / listed[1]["path"] / "config.json"),
        head=tuple(head),
        dense=dense,
        dims=dims,
    )


def _vector_config(place: Path) -> dict[str, Any]:
    """Configuration of a module that must map sentence vectors to sentence vectors."""
    file = place / "config.json"
    config = read_json(file) if file.exists() else {}
    for key in ("module_input_name", "module_output_name"):
        if (config.get(key) or "sentence_embedding") != "sentence_embedding":
            raise ConversionError(f"{file}: {key} {config[key]!r} is not supported")
    if config.get("use_residual"):
        raise ConversionError(f"{file}: use_residual is not supported")
    return config


def _activation(place: Path, config: Mapping[str, Any]) -> tuple[HeadStep, ...]:
    path = str(config.get("activation_function", DEFAULT_ACTIVATION))
    name = path.rpartition(".")[2]
    if not path.startswith("torch.nn.") or name not in ACTIVATIONS:
        raise ConversionError(
            f"{place}: activation_function {path} is not one of {', '.join(ACTIVATIONS)} of torch.nn"
        )
    return ACTIVATIONS[name]


def _pooling(file: Path) -> Pooling:
    config = read_json(file)
    stated = config.get("pooling_mode")
    flags = [k for k, on in config.items() if k.startswith("pooling_mode_") and on]
    modes = [stated] if isinstance(stated, str) else list(stated or flags)
    names = [m.removeprefix("pooling_mode_").removesuffix("_tokens") for m in modes]
    names = [name.removesuffix("_token") for name in names]
    if len(names) != 1 or names[0] not in get_args(Pooling):
        raise ConversionError(
            f"{file}: pooling {' + '.join(names) or 'none'} is not one of {POOLINGS}"
        )
    if config.get("include_prompt") is False:
        raise ConversionError(
            f"{file}: include_prompt is false, and pooling without the prompt's tokens is not "
            "supported"
        )
    return cast("Pooling", names[0])
