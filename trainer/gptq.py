"""GPTQ: codes for a matrix that make up, column by column, for what rounding loses.

`quantize` takes weights, the Hessian of their inputs (`trainer.hessians`) and row scales (`trainer.clipping`);
`trainer.quantizer` calls it for a whole model.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, though torch does not mark it so

from trainer.clipping import refuse_non_finite
from trainer.errors import ArtifactError
from trainer.quantized import q_max

MAX_DAMPING = 1.0
"""Largest damping that a Hessian which is not positive definite is met with, in shares of its mean diagonal."""


def inverse_factor(hessian: Tensor) -> Tensor:
    """Upper triangular U with H⁻¹ = UᵀU, for symmetric positive definite H [n, n] (pg#1948).

    With J the reversal of order and JHJ = CCᵀ, R = JCJ is upper triangular with H = RRᵀ, hence U = R⁻¹: one Cholesky
    factor and one triangular inverse in place of Cholesky, inverse, Cholesky. Raises LinAlgError.
    """
    upper = torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    inverse: Tensor = torch.linalg.solve_triangular(upper, identity, upper=True)
    return inverse


def _damped_factor(hessian: Tensor, *, damping: float, name: str) -> Tensor:
    """`inverse_factor` of H + damping·mean(diag H)·I, with ten times the damping until that is positive definite."""
    mean = hessian.diagonal().mean()
    share = damping
    while True:
        damped = hessian.clone()
        damped.diagonal().add_(share * mean)
        try:
            return inverse_factor(damped)
        except LinAlgError:
            if share >= MAX_DAMPING:
                raise ArtifactError(
                    f"Hessian of {name} is not positive definite, even with {share:g} of its mean diagonal added; "
                    "collect it again on more calibration batches"
                ) from None
            share = min(max(10 * share, 1e-6), MAX_DAMPING)


def quantize(
    weight: Tensor, hessian: Tensor, scales: Tensor, *, bits: int, damping: float, block: int, name: str = "matrix"
) -> Tensor:
    """GPTQ (arXiv:2210.17323): codes int8 [rows, cols] that lower tr((W-Ŵ) H (W-Ŵ)ᵀ) below what rounding leaves.

    Columns are rounded one after the other by descending diag H; what rounding a column leaves over is pushed onto
    the columns still to come: e = (w_j - s·q_j)/U_jj, w_{j+1…} -= e·U_{j,j+1…}, at once inside a block of `block`
    columns, and by one product for all columns behind it. Inputs that were never seen (H_jj = 0) get code 0.
    `weight` [rows, cols], `hessian` [cols, cols], `scales` fp16 [rows]. Raises ArtifactError for shapes that don't
    fit, NaN or infinity, and a Hessian that MAX_DAMPING doesn't make positive definite.
    """
    rows, columns = weight.shape
    if hessian.shape != (columns, columns) or scales.shape != (rows,):
        raise ArtifactError(
            f"{name}: Hessian of shape {list(hessian.shape)} and scales of {list(scales.shape)}, "
            f"expected {[columns, columns]} and {[rows]} for weights of {[rows, columns]}"
        )
    refuse_non_finite(weight, f"weights of {name}")
    refuse_non_finite(hessian, f"Hessian of {name}")
    dead = hessian.diagonal() == 0
    order = hessian.diagonal().argsort(descending=True, stable=True)
    H = hessian.float() + torch.diag(dead.float())
    U = _damped_factor(H[order][:, order], damping=damping, name=name)
    # One row of W is one column of the weights: contiguous, which the loop below reads and writes.
    W = weight.float().masked_fill(dead, 0.0).T[order].contiguous()
    step, limit = scales.float(), q_max(bits)
    codes = torch.empty_like(W)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        errors = torch.empty_like(W[start:end])
        for j in range(start, end):
            codes[j] = torch.round(W[j] / step).clamp(-limit, limit)
            errors[j - start] = (W[j] - step * codes[j]) / U[j, j]
            W[j + 1 : end].addr_(U[j, j + 1 : end], errors[j - start], alpha=-1)
        W[end:] -= U[start:end, end:].T @ errors
    return codes[order.argsort()].T.to(torch.int8).contiguous()
