"""LQER: a low-rank part of what quantization lost, given back to the matrices that lost most.

    matrices = corrected(weights, hessians, matrices, count=3, rank=4, group=64)

The idea is arXiv:2402.02446's, the coding that of pg#1797: W - Ŵ ≈ A B with A in 2 bits, B in 4 bits and a scale for
each `group` entries of it. There A B is the truncated SVD, rounded afterwards. Here each pair of a column of A and a
row of B is fitted as it is coded, in the norm of the Hessian and to what the coded pairs before it left over: cheaper
than an SVD, and of a loss that is mostly of low rank it leaves less than 0.6 of what the rounded SVD leaves
(tests/trainer/test_lqer.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.clipping import positive_half
from trainer.quantized import LEFT_BITS, RIGHT_BITS, Correction, QuantizedMatrix, dequantize_matrix, q_max

ROUNDS = 4
"""Of power iteration, and then of alternating least squares."""
_TINY = 1e-200


def corrected(
    weights: Mapping[str, Tensor],
    hessians: Mapping[str, Tensor],
    matrices: Mapping[str, QuantizedMatrix],
    *,
    count: int,
    rank: int,
    group: int,
) -> dict[str, QuantizedMatrix]:
    """The `count` matrices with the largest ‖W - Ŵ‖_F, each with its correction; ties go to the earlier name.

    All three by parameter name: fp32 [rows, cols], [cols, cols] of its inputs, and what GPTQ made of it.
    """

    def lost(name: str) -> Tensor:
        return weights[name].double() - dequantize_matrix(matrices[name]).double()

    norms = {name: float(lost(name).norm()) for name in matrices}
    worst = sorted(norms, key=lambda name: (-norms[name], name))[:count]
    return {
        name: dataclasses.replace(
            matrices[name], correction=low_rank(lost(name), hessians[name].double(), rank=rank, group=group)
        )
        for name in worst
    }


def low_rank(lost: Tensor, hessian: Tensor, *, rank: int, group: int) -> Correction:
    """The correction for E = `lost` [rows, cols] that lowers tr((E - AB) H (E - AB)ᵀ), pair by pair; both float64."""
    left, right = lost.new_zeros(len(lost), rank), lost.new_zeros(rank, lost.shape[1])
    found = _coded(left, right, group)
    for k in range(rank):
        left[:, k], right[k] = _pair(lost - found.product().double(), hessian)
        found = _coded(left, right, group)
    return found


def _pair(lost: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Codes a [rows] and numbers b [cols] for which a bᵀ is near `lost`: float64.

    Given b, the best a is E H b / bᵀHb, rounded, whatever H; given a, the best b is Eᵀa / aᵀa. It starts from the
    largest row, and with a of unit mean square, whose largest entry is negative as the longer side of the codes is.
    """
    low, high = -q_max(LEFT_BITS) - 1, q_max(LEFT_BITS)
    b = lost[lost.square().sum(dim=1).argmax()]
    for step in range(2 * ROUNDS):
        Hb = hessian @ b
        a = lost @ Hb / (b @ Hb).clamp(min=_TINY)
        if step < ROUNDS:
            a = a * -a[a.abs().argmax()].sign() / a.square().mean().sqrt().clamp(min=_TINY)
        else:
            a = a.round().clamp(low, high)
        b = a @ lost / (a @ a).clamp(min=_TINY)
    return a, b


def _coded(left: Tensor, right: Tensor, group: int) -> Correction:
    """Codes of both factors; A's are given. B's largest entry gives the scale of A, so that B's fit fp16 well."""
    low, high = -q_max(RIGHT_BITS) - 1, q_max(RIGHT_BITS)
    unit = positive_half(right.abs().max() / (high + 0.5)).view(1)
    flat = right.flatten() / unit.double()
    groups = torch.nn.functional.pad(flat, (0, -len(flat) % group)).view(-1, group)
    scales = positive_half(groups.abs().amax(dim=1) / (high + 0.5))
    codes = (groups / scales.double()[:, None]).round().clamp(low, high)
    return Correction(
        left.to(torch.int8), unit, codes.flatten()[: len(flat)].view(right.shape).to(torch.int8), scales, group
    )
