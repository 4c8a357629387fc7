"""SDClip: one fp16 scale for every row of a matrix, and plain rounding to it.

    scales = row_scales(weight, bits=6, k=12.85)
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


def row_scales(weight: Tensor, *, bits: int, k: float, name: str = "matrix") -> Tensor:
    """SDClip (pg#1394): s_i = fp16(k·std(w_i)/q_max) of every row of `weight` [rows, cols], as fp16 [rows].

    A row whose scale fp16 can't hold gets the nearest positive one that it can, 2^-24 or 65504 (so a row of zeros
    decodes to zeros). Raises ArtifactError for NaN or infinity in the weights.
    """
    refuse_non_finite(weight, f"weights of {name}")
    scales = k * weight.double().std(dim=1, correction=0) / q_max(bits)
    return scales.clamp(_HALF.smallest_normal * _HALF.eps, _HALF.max).half()


def round_codes(weight: Tensor, scales: Tensor, *, bits: int) -> Tensor:
    """The nearest codes, int8 [rows, cols], each entry on its own: at most half a step off inside the clip."""
    steps = torch.round(weight.float() / scales.float()[:, None])
    return steps.clamp(-q_max(bits), q_max(bits)).to(torch.int8)


def refuse_non_finite(values: Tensor, what: str) -> None:
    """Raise ArtifactError, by name and count, if any of `values` is NaN or infinite."""
    count = int((~values.isfinite()).sum())
    if count:
        raise ArtifactError(f"{what}: {count} of {values.numel()} are NaN or infinite; did training diverge?")
