"""SDClip: one fp16 scale for every row of a matrix, and plain rounding to it.

    scales = row_scales(weight, bits=6, k=12.85)
    scales = row_scales(weight, bits=6, k=row_clips(weight, hessian, k=12.85, share=0.175))
    codes = round_codes(weight, scales, bits=6)      what GPTQ (`trainer.gptq`) is held against

The step is k·std/q_max, so the bytes that the codes take after entropy coding depend on k alone, not on the size of
the weights: k is the knob for the size of an artifact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.errors import ArtifactError
from trainer.quantized import q_max

_HALF = torch.finfo(torch.float16)


def row_scales(weight: Tensor, *, bits: int, k: float | Tensor, name: str = "matrix") -> Tensor:
    """SDClip (pg#1394): s_i = fp16(k·std(w_i)/q_max) of every row of `weight` [rows, cols], as fp16 [rows].

    `k` is one for all rows or float64 [rows]. A row whose scale fp16 can't hold gets the nearest positive one that it
    can, 2^-24 or 65504 (so a row of zeros decodes to zeros). Raises ArtifactError for NaN or infinity in the weights.
    """
    refuse_non_finite(weight, f"weights of {name}")
    return positive_half(k * weight.double().std(dim=1, correction=0) / q_max(bits))


def positive_half(values: Tensor) -> Tensor:
    """The nearest positive fp16 number to each."""
    return values.clamp(_HALF.smallest_normal * _HALF.eps, _HALF.max).half()


def row_clips(weight: Tensor, hessian: Tensor, *, k: float, share: float, name: str = "matrix") -> Tensor:
    """Hessian-aware SDClip (pg#1412): k_i = k·[1 + share·(r_i - 1)], float64 [rows].

    r_i = Σ_j |w_ij|·H_jj, divided by its mean over the rows; 1 where that mean is 0. `share` is from 0, which leaves
    k, to 1. Raises ArtifactError for a Hessian of another width.
    """
    sums = weight.double().abs() @ input_squares(weight, hessian, name=name)
    mean = sums.mean()
    return k * (1 + share * (sums / mean - 1)) if mean > 0 else torch.full_like(sums, k)


def input_squares(weight: Tensor, hessian: Tensor, *, name: str) -> Tensor:
    """diag H, the Σ x_j² of what `weight` [rows, cols] is multiplied with: float64 [cols].

    Raises ArtifactError for a Hessian of another width.
    """
    columns = weight.shape[1]
    if hessian.shape != (columns, columns):
        raise ArtifactError(f"{name}: Hessian of shape {list(hessian.shape)}, expected {[columns, columns]}")
    return hessian.diagonal().double()


def round_codes(weight: Tensor, scales: Tensor, *, bits: int) -> Tensor:
    """The nearest codes, int8 [rows, cols], each entry on its own: at most half a step off inside the clip."""
    steps = torch.round(weight.float() / scales.float()[:, None])
    return steps.clamp(-q_max(bits), q_max(bits)).to(torch.int8)


def refuse_non_finite(values: Tensor, what: str) -> None:
    """Raise ArtifactError, by name and count, if any of `values` is NaN or infinite."""
    count = int((~values.isfinite()).sum())
    if count:
        raise ArtifactError(f"{what}: {count} of {values.numel()} are NaN or infinite; did training diverge?")
