"""Static INT8 by NNCF, OpenVINO's own quantiser, as a second opinion on `to_int8.py`.

It is saved as OpenVINO's IR, `model.xml` with `model.bin`, plain data both.

It quantises attention's products too, which `to_int8.py` leaves in float: cheaper, and less faithful.
Hence `openvino-int8` is the latter's graph, this `openvino-int8-nncf`. Of NNCF's settings only these
were tried.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov

from serve_app.engines.base import IR_FILE, TokenIds

QUIET = 40  # logging.ERROR: NNCF has a logger of its own


def missing() -> str | None:
    """What stands in the way of building it here."""
    if importlib.util.find_spec("nncf") is None:
        return "needs the package nncf: run `pip install nncf`"
    return None


def quantize_with_nncf(fp32_file: Path, folder: Path, *, calibration: Sequence[TokenIds]) -> None:
    """Write NNCF's INT8 form of an FP32 export as `model.xml` and `model.bin`.

    Texts calibrate one by one: NNCF would take a batch's padding into the ranges.
    """
    import nncf

    nncf.set_log_level(QUIET)
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars would tear ours
        quantised = nncf.quantize(
            ov.Core().read_model(fp32_file),
            nncf.Dataset([_feeds(ids) for ids in calibration]),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
        )
    ov.save_model(quantised, folder / IR_FILE, compress_to_fp16=False)


def _feeds(ids: TokenIds) -> dict[str, np.ndarray]:
    row = ids[None].astype(np.int64)
    return {"input_ids": row, "attention_mask": np.ones_like(row)}
