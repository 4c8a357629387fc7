"""AWQ-lite: which groups of columns are worth codes of more bits (pg#1908; the idea is AWQ's, arXiv:2306.00978).

    starts = most_salient(weights, hessians, width=64, count=1)      {"blocks.3.mlp.up.weight": 128}

Those columns get scales of their own (`trainer.quantized.Protected`) before GPTQ, so its error feedback sees them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.clipping import input_squares


def group_scores(weight: Tensor, hessian: Tensor, *, width: int, name: str = "matrix") -> Tensor:
    """Σ_j √H_jj · mean_i |w_ij| over each group of `width` columns, the last of which may be short: float64 [groups].

    H_jj is E x_j² times the number of tokens, the same for all sites but those that a forward reaches several times.
    Raises ArtifactError for a Hessian of another width.
    """
    squares = input_squares(weight, hessian, name=name).clamp(min=0)
    columns = squares.sqrt() * weight.double().abs().mean(dim=0)
    return torch.stack([group.sum() for group in torch.split(columns, width)])


def most_salient(
    weights: Mapping[str, Tensor], hessians: Mapping[str, Tensor], *, width: int, count: int
) -> dict[str, int]:
    """The best group of each matrix, of the `count` matrices where that is best: name → its first column.

    `weights` and `hessians` by parameter name. Ties go to the earlier column, then to the earlier name.
    """
    scores = {name: group_scores(weights[name], hessians[name], width=width, name=name) for name in weights}
    best = sorted(scores, key=lambda name: (-float(scores[name].max()), name))[:count]
    return {name: int(scores[name].argmax()) * width for name in best}
