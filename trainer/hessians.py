"""Hessians for GPTQ: the second moments of what each matrix is multiplied with.

Data flow: `collect` runs the model over calibration batches, and a forward pre-hook on the module of each input site
adds that input's XᵀX; `reduce` averages over ranks. The model need not know: it names its sites (`gpt.sites`:
parameter → path of the submodule whose first argument is that input). Accumulating is kept apart from solving
(`trainer.gptq`), so that calibration data enters the quantizer here and nowhere else.

    hessians = reduce(collect(gpt, (batch_ids for …), looped=True), world.group)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from trainer.errors import DataError


def collect(gpt: nn.Module, batches: Iterable[Tensor], *, looped: bool) -> dict[str, Tensor]:
    """H = (1/b) Σ XᵀX over b batches (arXiv:2210.17323): input site → fp32 [n, n] on the model's device.

    `batches` are token ids int64 [B, T]. X [B·T, n] is what reaches the site in one pass; a layer that is applied
    several times in a forward adds each pass; q, k and v share an input and hence a Hessian. Give the plain module: a
    compiled one may skip hooks. Raises DataError for no batches, and for a site that no forward reached.
    """
    sites: Mapping[str, str] = gpt.sites  # type: ignore[assignment]
    hessians: dict[str, Tensor] = {}
    hooks = [
        gpt.get_submodule(site).register_forward_pre_hook(_adder(hessians, site))
        for site in sorted(set(sites.values()))
    ]
    count = 0
    try:
        with torch.no_grad():
            for ids in batches:
                gpt(ids, None, looped)
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
    if not count:
        raise DataError("no calibration batches to collect Hessians from; raise calibration.batches above 0")
    if unseen := sorted(set(sites.values()) - set(hessians)):
        raise DataError(f"no calibration batch reached {', '.join(unseen)}; every site needs inputs to quantize with")
    return {site: hessians[site].div_(count) for site in sorted(hessians)}


def reduce(hessians: Mapping[str, Tensor], group: torch.distributed.ProcessGroup | None = None) -> dict[str, Tensor]:
    """The mean of every Hessian over the ranks of `group`, the same on all; without a group what was given."""
    if group is None:
        return dict(hessians)
    means = {site: hessians[site].clone() for site in sorted(hessians)}
    for H in means.values():
        torch.distributed.all_reduce(H, group=group)
        H /= torch.distributed.get_world_size(group)
    return means


def _adder(hessians: dict[str, Tensor], site: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def add(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        X = inputs[0].detach().flatten(0, -2).float()
        if site not in hessians:
            hessians[site] = X.new_zeros(X.shape[1], X.shape[1])
        # In place, because autocast leaves in-place products alone: X.T @ X would come out in bf16, whose 8 bits lose
        # most of what 64 batches add up.
        hessians[site].addmm_(X.T, X)

    return add
