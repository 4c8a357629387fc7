"""What an artifact holds: codes with their scales, what mends them, fp16 vectors; and the way back to weights.

`trainer.quantizer` makes a `QuantizedModel`, `trainer.artifact` writes and reads it, `dequantize_model` is the state
that is scored. A matrix is decoded as

    weight[i, j] ≈ scale[i] · code[i, j]                      (Protected: columns with bits and row scales of their own)
                 + (left · left_scale) @ (right · right_scales)   (Correction: a low-rank part of what GPTQ left over)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

LEFT_BITS, RIGHT_BITS = 2, 4
"""Bits of a correction's factors (pg#1797): codes from -2 to 1 and from -8 to 7."""


@dataclasses.dataclass(frozen=True, eq=False)
class Protected:
    """Columns `start` to `start + width` of a matrix, whose codes have `bits` and `scales` fp16 [rows] of their own."""

    start: int
    width: int
    bits: int
    scales: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Correction:
    """LQER: `left` int8 [rows, rank] with one fp16 scale [1]; `right` int8 [rank, cols] with one for `group` entries.

    `right_scales` fp16 [ceil(rank·cols/group)] go along the flattened `right`; the last group may be short.
    """

    left: Tensor
    left_scale: Tensor
    right: Tensor
    right_scales: Tensor
    group: int

    def product(self) -> Tensor:
        """The correction as fp32 [rows, cols]."""
        scales = self.right_scales.float().repeat_interleave(self.group)[: self.right.numel()]
        return (self.left.float() * self.left_scale.float()) @ (self.right.float() * scales.view(self.right.shape))


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """`codes` int8 [rows, cols] within ±q_max(bits), `scales` fp16 [rows], positive: weight ≈ scale · code.

    Codes of `protected` columns are within ±q_max of their own bits.
    """

    codes: Tensor
    scales: Tensor
    bits: int
    protected: Protected | None = None
    correction: Correction | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedModel:
    """Quantized matrices and fp16 vectors, by parameter name."""

    matrices: Mapping[str, QuantizedMatrix]
    vectors: Mapping[str, Tensor]


def q_max(bits: int) -> int:
    """The largest code, 2^(bits-1) - 1; codes are symmetric, so the most negative value of the type is unused."""
    return (1 << bits - 1) - 1


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """Weights fp32 [rows, cols] = scale · code: finite, since |code| ≤ 127 and a scale is finite."""
    return codes.float() * scales.float()[:, None]


def dequantize_matrix(matrix: QuantizedMatrix) -> Tensor:
    """Weights fp32 [rows, cols] of a matrix with its protected columns and its correction."""
    weight = dequantize(matrix.codes, matrix.scales)
    if (own := matrix.protected) is not None:
        columns = slice(own.start, own.start + own.width)
        weight[:, columns] = dequantize(matrix.codes[:, columns], own.scales)
    return weight if matrix.correction is None else weight + matrix.correction.product()


def dequantize_model(quantized: QuantizedModel) -> dict[str, Tensor]:
    """The state dict, all fp32, that a `QuantizedModel` stands for."""
    matrices = {name: dequantize_matrix(matrix) for name, matrix in quantized.matrices.items()}
    return matrices | {name: vector.float() for name, vector in quantized.vectors.items()}
