"""GPTQ: round a weight so that the errors of its inputs cancel, instead of each to the nearest.

Input channels are rounded one after the other, loudest first; what rounding channel i changed of the
product x @ W is taken up by the channels still to come, as far as their inputs correlate with x_i:

    W_j -= (W_i - Q_i) / U_ii * U_ij  for j > i,    U upper,  U'U = inv(H),    H = X'X + damping

(Frantar et al. 2023, algorithm 1, for all output channels at once.) The damping holds the noise that
rounding the activation itself adds, step^2 / 12 a value: weights must not lean on finer detail.
"""

import numpy as np
import numpy.typing as npt

from converters.onnx_graph import Floats

Moments = npt.NDArray[np.float64]  # X'X, [in, in]

DAMPING = 0.01  # of the mean square input; without it rare channels blow the weights up
LARGEST = 127


def damped(moments: Moments, *, tokens: int, step: float) -> Moments:
    """The moments with what keeps their inverse tame.

    Args:
        moments: X'X over the calibration tokens.
        tokens: how many those are.
        step: the rounding step of the activation.
    """
    noise = tokens * step**2 / 12
    ridge = noise + DAMPING * max(float(np.diag(moments).mean()), 1e-12)
    return np.asarray(moments + ridge * np.eye(len(moments)))


def round_weight(weight: Floats, scale: Floats, hessian: Moments) -> npt.NDArray[np.int8]:
    """Round a weight [in, out] to int8 steps of `scale` [out], given damped moments [in, in].

    Raises:
        numpy.linalg.LinAlgError: the moments are not positive definite.
    """
    order = np.argsort(-np.diag(hessian))
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    upper = np.linalg.cholesky(inverse).T.astype(np.float32)
    rest = (weight / scale)[order]
    rounded = np.empty_like(rest)
    for i, row in enumerate(rest):
        rounded[i] = np.clip(np.rint(row), -LARGEST, LARGEST)
        error = (row - rounded[i]) / upper[i, i]
        rest[i + 1 :] -= upper[i, i + 1 :, None] * error
    result = np.empty(weight.shape, np.int8)
    result[order] = rounded
    return result
