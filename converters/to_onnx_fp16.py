"""ONNX FP16: half the size everywhere; faster only where the runtime has FP16 kernels.

On a CPU ONNX Runtime casts back to FP32 around each product, so there it is a form of storage. On a
GPU, TensorRT builds its engine from this graph.
"""

import logging
from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

# Pooling sums over a text's tokens and a norm squares: both leave FP16's range before a vector does.
# And a division in FP16 leaves lengths of 1.0002.
FLOAT_OPS = ("ReduceSum", "ReduceMean", "ReduceL2", "Pow", "Div", "LpNormalization")


def to_fp16(fp32_file: Path, out_file: Path) -> None:
    """Write the FP16 form of an unfused FP32 export; inputs and output keep their types.

    `onnxconverter_common.float16` does the same job in name, and its output does not load.
    """
    model = onnx.load(str(fp32_file))
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it names each weight below FP16's smallest step
    try:
        half = convert_float_to_float16(
            model,
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *FLOAT_OPS],
        )
    finally:
        logging.disable(previous)
    onnx.save(half, str(out_file))
