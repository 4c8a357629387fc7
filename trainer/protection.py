"""AWQ-lite: which groups of columns are worth codes of more bits (pg#1908; the idea is AWQ's, arXiv:2306.00978).

    chosen = most_salient(weights, hessians, width=64, count=1)      {"blocks.3.mlp.up.weight": range(128, 192)}
    protected = protect(weight, columns, bits=8, k=clips, name=name)

Those columns get scales of their own (`trainer.quantized.Protected`) before GPTQ, so its error feedback sees them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.clipping import input_squares, row_scales
from trainer.quantized import Protected


def groups(columns: int, *, width: int) -> list[range]:
    """The columns in groups of `width`; what is left at the end joins the last of them, up to 2·width - 1 columns.

    Where that would be a single group with all columns, which no file may hold, what is left stays out of it.
    """
    starts = list(range(0, columns - width + 1, width))
    if len(starts) < 2:
        return [range(min(width, columns))]
    return [range(start, end) for start, end in zip(starts, [*starts[1:], columns], strict=True)]


def group_scores(weight: Tensor, hessian: Tensor, *, width: int, name: str = "matrix") -> Tensor:
    """Σ_j √H_jj · mean_i |w_ij| over each of the `groups` of columns: float64 [groups].

    H_jj is E x_j² times the number of tokens, the same for all sites but those that a forward reaches several times.
    Raises ArtifactError for a Hessian of another width.
    """
    squares = input_squares(weight, hessian, name=name).clamp(min=0)
    columns = squares.sqrt() * weight.double().abs().mean(dim=0)
    return torch.stack([columns[group.start : group.stop].sum() for group in groups(len(columns), width=width)])


def most_salient(
    weights: Mapping[str, Tensor], hessians: Mapping[str, Tensor], *, width: int, count: int
) -> dict[str, range]:
    """The best group of each matrix, of the `count` matrices where that is best: name → its columns.

    `weights` and `hessians` by parameter name. Ties go to the earlier column, then to the earlier name.
    """
    scores = {name: group_scores(weights[name], hessians[name], width=width, name=name) for name in weights}
    best = sorted(scores, key=lambda name: (-float(scores[name].max()), name))[:count]
    return {name: groups(weights[name].shape[1], width=width)[int(scores[name].argmax())] for name in best}


def protect(weight: Tensor, columns: range, *, bits: int, k: float | Tensor, name: str = "matrix") -> Protected:
    """`columns` of `weight` [rows, cols] with `bits`, and scales for them: SDClip's (`row_scales`) with the clips `k`.

    A row's is never finer than the whole row's at those bits. What few columns deviate from their own mean says
    little of their size, a single one's is 0; and GPTQ's feedback to them is as large as the other columns' steps.
    """
    inside = weight[:, columns.start : columns.stop]
    own, whole = (row_scales(values, bits=bits, k=k, name=name) for values in (inside, weight))
    return Protected(columns.start, len(columns), bits, torch.maximum(own, whole))
