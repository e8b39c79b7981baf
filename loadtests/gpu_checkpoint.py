"""A checkpoint small enough to travel: FP16 weights, and what FP32 gives for the probe texts.

The folder is a sentence-transformers one, so that sentence-transformers itself can be measured on it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from converters.checkpoint import DEFAULT_CHECKPOINT, Checkpoint, open_checkpoint, read_checkpoint
from converters.corpus import probe_texts
from converters.fidelity import embed_sorted, reference_engine, tokenize
from loadtests.errors import BadFile
from serve_app.engines.base import TokenIds, Vectors
from serve_app.errors import ConversionError

PROBE_NAME = "probe.npz"
TRANSFER_BYTES = 64 * 2**20  # what may be carried to a lent machine, the repository included


@dataclass(frozen=True, slots=True)
class Probe:
    """Token ids of the probe texts, and the FP32 checkpoint's vectors of them."""

    texts: list[TokenIds]
    vectors: Vectors


def prepare(folder: Path, *, source: str = DEFAULT_CHECKPOINT) -> int:
    """Write the folder, and return its size in bytes.

    Args:
        folder: new, or one that was written before.
        source: a checkpoint as `converters build` takes it, with its transformer in its top folder.

    Raises:
        BadFile: there is no such checkpoint, or it has another layout.
    """
    try:
        checkpoint = open_checkpoint(source)
    except ConversionError as error:
        raise BadFile(error.message) from error
    if checkpoint.modules.dense_folders or checkpoint.folder != checkpoint.modules.transformer:
        raise BadFile(f"{source}: only a transformer with pooling can be prepared")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(
        checkpoint.folder,
        folder,
        ignore=shutil.ignore_patterns("*.safetensors", "README.md", "data_config.json"),
        dirs_exist_ok=True,
    )
    ids = tokenize(checkpoint, probe_texts())
    vectors = embed_sorted(reference_engine(checkpoint), ids)
    checkpoint.load_model().to(torch.float16).save_pretrained(folder, safe_serialization=True)
    np.savez_compressed(
        folder / PROBE_NAME,
        ids=np.concatenate(ids),
        lengths=np.array([*map(len, ids)], dtype=np.int32),
        vectors=vectors,
    )
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def read(folder: Path) -> tuple[Checkpoint, Probe]:
    """What `prepare` wrote.

    Raises:
        BadFile: it is no such folder.
    """
    try:
        checkpoint = read_checkpoint(folder, name=folder.name)
        with np.load(folder / PROBE_NAME) as found:
            ends = np.cumsum(found["lengths"])[:-1]
            return checkpoint, Probe(np.split(found["ids"], ends), found["vectors"])
    except ConversionError as error:
        raise BadFile(error.message) from error
    except OSError as error:
        raise BadFile(
            f"{folder}: {error.strerror or error}; write it with --prepare {folder}"
        ) from error
