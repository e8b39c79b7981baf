"""GPTQ: round a weight so that the errors of its inputs cancel, instead of each to the nearest.

Input channels are rounded one after the other, loudest first; what rounding channel i changed of the
product x @ W is taken up by the channels still to come, as far as their inputs correlate with x_i:

    W_j -= (W_i - Q_i) / U_ii * U_ij  for j > i,    U upper,  U'U = inv(H),    H = X'X + damping

(Frantar et al. 2023, algorithm 1, for all output channels at once.) The damping holds the noise that
rounding the activation itself adds, step^2 / 12 a value: weights must not lean on finer detail.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from converters.calibration import TokenBatch, activations
from converters.onnx_graph import Floats, Graph

Moments = npt.NDArray[np.float64]  # X'X, [in, in]

DAMPING = 0.01  # of the mean square input; without it rare channels blow the weights up
LARGEST = 127


@dataclass(frozen=True, slots=True)
class InputMoments:
    """X'X of one activation over so many tokens."""

    total: Moments
    tokens: int

    def damped(self, *, step: float = 0.0) -> Moments:
        """With what keeps their inverse tame, where the activation itself is rounded by `step`."""
        noise = self.tokens * step**2 / 12
        ridge = noise + DAMPING * max(float(np.diag(self.total).mean()), 1e-12)
        return np.asarray(self.total + ridge * np.eye(len(self.total)))


def input_moments(
    graph: Graph, names: Sequence[str], batches: Sequence[TokenBatch]
) -> dict[str, InputMoments]:
    """What rounding needs to know of each named activation of a float graph."""
    moments: dict[str, InputMoments] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "float.onnx"
        graph.save(file)
        for name, rows in activations(file, names, batches):
            known = moments.get(name, InputMoments(np.zeros((rows.shape[1],) * 2), 0))
            total = known.total + (rows.T @ rows)
            moments[name] = InputMoments(total, known.tokens + len(rows))
    return moments


def round_weight(weight: Floats, scale: Floats, hessian: Moments) -> npt.NDArray[np.int8]:
    """Round a weight [in, out] to int8 steps, given damped moments [in, in].

    Args:
        weight: float32 [in, out].
        scale: the step, float32 [out], or [in, out] where input channels have steps of their own.
        hessian: what `InputMoments.damped` gave.

    Raises:
        numpy.linalg.LinAlgError: the moments are not positive definite.
    """
    order = np.argsort(-np.diag(hessian))
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    upper = np.linalg.cholesky(inverse).T.astype(np.float32)
    rest = weight[order]
    steps = np.broadcast_to(scale, weight.shape)[order]
    rounded = np.empty_like(rest)
    for i, (row, step) in enumerate(zip(rest, steps, strict=True)):
        rounded[i] = np.clip(np.rint(row / step), -LARGEST, LARGEST)
        error = (row - rounded[i] * step) / upper[i, i]
        rest[i + 1 :] -= upper[i, i + 1 :, None] * error
    result = np.empty(weight.shape, np.int8)
    result[order] = rounded
    return result
