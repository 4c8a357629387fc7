"""Plain forms of what the trainer does quickly: the oracles of its tests, and the baselines of its benchmarks.

`quantize` is the trainer's own form for one matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.gptq import Problem, solve
from trainer.quantized import Protected, q_max


def quantize(weight: Tensor, hessian: Tensor, scales: Tensor, *, bits: int, damping: float, block: int) -> Tensor:
    """The trainer's GPTQ of one matrix: codes int8 [rows, cols]."""
    problem = Problem(weight=weight, hessian=hessian, scales=scales, bits=bits, damping=damping)
    return solve([problem], block=block)[0]


def upper_factor_of_inverse(hessian: Tensor) -> Tensor:
    """U with H⁻¹ = UᵀU by Cholesky, inverse, Cholesky, as the paper of GPTQ has it."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def plain_gptq(
    weight: Tensor,
    hessian: Tensor,
    scales: Tensor,
    *,
    bits: int,
    damping: float,
    block: int = 128,
    dtype: torch.dtype = torch.float64,
    protected: Protected | None = None,
    damping_by: str = "mean",
) -> Tensor:
    """GPTQ (arXiv:2210.17323, algorithm 1) of one matrix, column by column: codes int8 [rows, cols].

    What a column loses goes to the rest of its block of `block` columns at once, and behind the block in one product.
    In float32 this is today's practice (pg#1394), in float64 the exact one.
    """
    W, H = weight.to(dtype, copy=True), hessian.to(dtype, copy=True)
    steps, limits = _grid(scales.to(dtype), bits, protected, W.shape)
    dead = H.diagonal() == 0
    H.diagonal()[dead] = 1
    W[:, dead] = 0
    order = H.diagonal().argsort(descending=True, stable=True)
    H.diagonal().add_(damping * (H.diagonal().mean() if damping_by == "mean" else H.diagonal().clone()))
    W, steps, limits, U = W[:, order], steps[:, order], limits[order], upper_factor_of_inverse(H[order][:, order])
    codes = torch.zeros_like(W)
    for start in range(0, len(H), block):
        end = min(start + block, len(H))
        lost = torch.zeros_like(W[:, start:end])
        for j in range(start, end):
            limit = float(limits[j])
            codes[:, j] = (W[:, j] / steps[:, j]).round().clamp(-limit, limit)
            lost[:, j - start] = (W[:, j] - steps[:, j] * codes[:, j]) / U[j, j]
            W[:, j + 1 : end] -= torch.outer(lost[:, j - start], U[j, j + 1 : end])
        W[:, end:] -= lost @ U[start:end, end:]
    return codes[:, order.argsort()].to(torch.int8)


def surgeon(weight: Tensor, hessian: Tensor, scales: Tensor, *, bits: int) -> Tensor:
    """GPTQ from first principles (optimal brain surgeon): invert the Hessian of what is left anew at every column."""
    W, limit = weight.double().clone(), q_max(bits)
    codes = torch.zeros(weight.shape, dtype=torch.int8)
    left = sorted(range(weight.shape[1]), key=lambda j: -float(hessian[j, j]))
    while left:
        inverse = torch.linalg.inv(hessian.double()[left][:, left])
        column = left[0]
        code = (W[:, column] / scales.double()).round().clamp(-limit, limit)
        lost = (W[:, column] - scales.double() * code) / inverse[0, 0]
        W[:, left] -= torch.outer(lost, inverse[0])
        codes[:, column] = code.to(torch.int8)
        left = left[1:]
    return codes


def _grid(scales: Tensor, bits: int, protected: Protected | None, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Step of every entry [rows, cols] and largest code of every column [cols]."""
    steps, limits = scales[:, None].repeat(1, shape[1]), torch.full((shape[1],), q_max(bits))
    if protected is not None:
        columns = slice(protected.start, protected.start + protected.width)
        steps[:, columns] = protected.scales.to(scales)[:, None]
        limits[columns] = q_max(protected.bits)
    return steps, limits
