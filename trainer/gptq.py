"""Quantization: SDClip scales, GPTQ codes, and the way back.

Data flow: `quantize_model` takes averaged weights and the Hessians of their inputs (`trainer.hessians`); each matrix
gets one fp16 scale a row (`row_scales`) and int8 codes (`quantize`); everything else becomes fp16. `dequantize_model`
is the way back to the fp32 weights that are scored; `trainer.artifact` writes and reads what lies between.

    quantized = quantize_model(state, collect(gpt, batches, looped=True), gpt.sites, recipe.gptq)
    gpt.load_state_dict(dequantize_model(quantized))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, though torch does not mark it so

from trainer.errors import ArtifactError
from trainer.settings import Gptq

EMBEDDING = "embedding"
"""Name of the matrix that has bits and a clip of its own."""

MAX_DAMPING = 1.0
"""Largest damping that a Hessian which is not positive definite is met with, in shares of its mean diagonal."""

_HALF = torch.finfo(torch.float16)


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """`codes` int8 [rows, cols] within ±q_max(bits), `scales` fp16 [rows], positive: weight ≈ scale · code."""

    codes: Tensor
    scales: Tensor
    bits: int


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedModel:
    """What an artifact holds: quantized matrices and fp16 vectors, by parameter name."""

    matrices: Mapping[str, QuantizedMatrix]
    vectors: Mapping[str, Tensor]


def q_max(bits: int) -> int:
    """The largest code, 2^(bits-1) - 1; codes are symmetric, so the most negative value of the type is unused."""
    return (1 << bits - 1) - 1


def row_scales(weight: Tensor, *, bits: int, k: float, name: str = "matrix") -> Tensor:
    """SDClip (pg#1394): s_i = fp16(k·std(w_i)/q_max) of every row of `weight` [rows, cols], as fp16 [rows].

    A row whose scale fp16 can't hold gets the nearest positive one that it can, 2^-24 or 65504 (so a row of zeros
    decodes to zeros). Raises ArtifactError for NaN or infinity in the weights.
    """
    _refuse_non_finite(weight, f"weights of {name}")
    scales = k * weight.double().std(dim=1, correction=0) / q_max(bits)
    return scales.clamp(_HALF.smallest_normal * _HALF.eps, _HALF.max).half()


def round_codes(weight: Tensor, scales: Tensor, *, bits: int) -> Tensor:
    """The nearest codes, int8 [rows, cols], each entry on its own: at most half a step off inside the clip."""
    steps = torch.round(weight.float() / scales.float()[:, None])
    return steps.clamp(-q_max(bits), q_max(bits)).to(torch.int8)


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """Weights fp32 [rows, cols] = scale · code: finite, since |code| ≤ 127 and a scale is finite."""
    return codes.float() * scales.float()[:, None]


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
    _refuse_non_finite(weight, f"weights of {name}")
    _refuse_non_finite(hessian, f"Hessian of {name}")
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


def quantize_model(
    state: Mapping[str, Tensor], hessians: Mapping[str, Tensor], sites: Mapping[str, str], settings: Gptq
) -> QuantizedModel:
    """Every matrix that `sites` names (parameter → input site) by GPTQ with its site's Hessian, all else as fp16.

    `state` is name → weights, `hessians` site → [n, n]. The embedding has its own bits and clip. Raises
    ArtifactError, by name, for a matrix or Hessian that is missing, NaN, infinity, and vectors that fp16 can't hold.
    """
    if not sites:
        raise ArtifactError("nothing to quantize: the model names no matrices")
    if missing := sorted(set(sites) - set(state)) + sorted(set(sites.values()) - set(hessians)):
        raise ArtifactError(f"nothing to quantize with: no weights or Hessian of {', '.join(missing)}")
    matrices = {}
    for name in sorted(sites):
        bits = settings.embed_bits if name == EMBEDDING else settings.matrix_bits
        k = settings.embed_k if name == EMBEDDING else settings.matrix_k
        weight, hessian = state[name].detach(), hessians[sites[name]].to(state[name].device)
        scales = row_scales(weight, bits=bits, k=k, name=name)
        codes = quantize(weight, hessian, scales, bits=bits, damping=settings.damping, block=settings.block, name=name)
        matrices[name] = QuantizedMatrix(codes, scales, bits)
    vectors = {name: state[name].detach().half() for name in sorted(set(state) - set(sites))}
    for name, vector in vectors.items():
        _refuse_non_finite(vector, f"fp16 values of {name}")
    return QuantizedModel(matrices, vectors)


def dequantize_model(quantized: QuantizedModel) -> dict[str, Tensor]:
    """The state dict, all fp32, that a `QuantizedModel` stands for."""
    matrices = {name: dequantize(matrix.codes, matrix.scales) for name, matrix in quantized.matrices.items()}
    return matrices | {name: vector.float() for name, vector in quantized.vectors.items()}


def _refuse_non_finite(values: Tensor, what: str) -> None:
    count = int((~values.isfinite()).sum())
    if count:
        raise ArtifactError(f"{what}: {count} of {values.numel()} are NaN or infinite; did training diverge?")
