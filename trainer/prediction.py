"""Linear prediction of codes from the codes above them in the same column, in integers and without loss.

    coefficients = fit(codes)
    rest = residual(codes, coefficients, low, high)
    codes = restore(rest, coefficients, low, high)

The rows of a trained embedding's transpose, one for each dimension of the model, are correlated: unseen tokens share
nearly all of their vector, and all tokens share a part. Row i is predicted as ⌊Σ_{j<i} k_ij·row_j / 2^SHIFT + ½⌋,
within the bounds; what is left is taken modulo high - low + 1, so it keeps the bounds too. Products of int8
coefficients and int8 codes, at most MAX_ROWS of them, stay below 2^24: fp32 sums them exactly in any order, so every
machine restores the same codes.
"""

from __future__ import annotations

import numpy as np

SHIFT = 5
"""Coefficients are multiples of 2^-SHIFT. Half or double that step costs a CPU-scale embedding .5 or 2 % more bytes."""
MAX_COEFFICIENT = 126
MAX_ROWS = 1024
"""MAX_ROWS · MAX_COEFFICIENT · 128 < 2^24."""

_BLOCK = 64


def fit(codes: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Coefficients int8 [rows, rows], below the diagonal, for codes int8 [rows, cols]: least squares.

    `weights`, integers from 1 to 2^14 for each column, multiply its squares. With G = Σ_columns weight · x xᵀ =
    L D Lᵀ, L unit lower triangular, the rows of I - L⁻¹ predict. G's entries are integers below 2^53, exact in fp64
    however they are summed, and the elimination multiplies and subtracts entry by entry, so equal codes give equal
    coefficients on every machine.
    """
    X = codes.astype(np.float64)
    G, inverse = (X if weights is None else X * weights) @ X.T, np.eye(len(X))
    # A share of the diagonal, so that rows which repeat others, or hold nothing, leave no zero pivot.
    G += np.diag(np.floor(G.diagonal() / (1 << 20)) + 1)
    for i in range(len(X) - 1):
        factor = G[i + 1 :, i] / G[i, i]
        G[i + 1 :, i + 1 :] -= np.multiply.outer(factor, G[i, i + 1 :])
        inverse[i + 1 :, : i + 1] -= np.multiply.outer(factor, inverse[i, : i + 1])
    scaled = np.rint(np.tril(inverse, -1) * -(1 << SHIFT)).clip(-MAX_COEFFICIENT, MAX_COEFFICIENT)
    return scaled.astype(np.int8)


def column_weights(rest: np.ndarray) -> np.ndarray:
    """For each column of `rest` int8 [rows, cols] the inverse of its mean square, about: int64 from 1 to 2^14.

    That is what the likelihood of columns of unequal spread asks of least squares; a second fit so weighted takes 2 %
    fewer bytes than the first for an embedding trained at the CPU scale.
    """
    spread = np.abs(rest.astype(np.int16)).sum(axis=0, dtype=np.int64) * 16 // len(rest) + 4
    weights: np.ndarray = (1 << 18) // spread**2
    return weights.clip(min=1)


def residual(codes: np.ndarray, coefficients: np.ndarray, low: int, high: int) -> np.ndarray:
    """What prediction leaves of codes int8 [rows, cols] within low and high: int8 of the same shape and bounds."""
    predicted = _round(coefficients.astype(np.float32) @ codes.astype(np.float32), low, high)
    rest: np.ndarray = (codes - predicted - low) % (high - low + 1) + low
    return rest.astype(np.int8)


def restore(rest: np.ndarray, coefficients: np.ndarray, low: int, high: int) -> np.ndarray:
    """The codes that leave `rest`: the inverse of `residual`, for any coefficients and bounds with 0 between them."""
    k, size = coefficients.astype(np.float32), np.float32(high - low + 1)
    codes = np.zeros(rest.shape, np.float32)
    for start in range(0, len(rest), _BLOCK):
        end = min(start + _BLOCK, len(rest))
        above = k[start:end, :start] @ codes[:start]
        for i in range(start, end):
            row = rest[i] + _round(above[i - start] + k[i, start:i] @ codes[start:i], low, high)
            row += (row < low) * size
            row -= (row > high) * size
            codes[i] = row
    return codes.astype(np.int8)


def _round(sums: np.ndarray, low: int, high: int) -> np.ndarray:
    rounded: np.ndarray = np.floor(sums * np.float32(0.5**SHIFT) + np.float32(0.5))
    return rounded.clip(low, high)
