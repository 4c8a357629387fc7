"""MuonEq-R: momentum whose every step is orthogonalised (arXiv:2603.28254; pg#1285), over banks, on one rank or many.

For a matrix W [rows, cols] with gradient G and momentum buffer M:

    M ← μM + G;  N = G + μM;  N_i ← N_i / max(‖N_i‖₂, 1e-7) for each row i;  O = NS(N)
    W ← (1 - η·wd)·W - η·√max(1, rows/cols)·O

Matrices of one shape are stacked to a bank [n, rows, cols], so that Newton–Schulz runs batched. With R > 1 ranks a
bank is padded to a multiple of R along n: the gradients are reduce-scattered (mean), each rank keeps the momentum of
its own slice and orthogonalises that, and the updates are all-gathered (pg#549, pg#1530). Every rank applies the same
update, so replicas stay equal bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# torch 2.13 renamed the two collectives on one tensor and warns about the old names.
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

COEFFICIENTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "fixed": ((3.4445, -4.7750, 2.0315),),
    # Polar Express (arXiv:2505.16932; pg#1344): one triple per iteration, further ones repeat the last.
    "polar": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
}


def newton_schulz(N: Tensor, *, steps: int, coefficients: str) -> Tensor:
    """The polar factor of each matrix of N [..., rows, cols], roughly: singular values near 1, vectors as N's.

    X = N / (‖N‖_F + 1e-7); `steps` times A = XXᵀ, X ← aX + (bA + cA²)X; on the transpose if rows > cols.
    `coefficients` names the triples (a, b, c): `fixed` or `polar`. Works in bf16 on a GPU, in N's dtype on a CPU, and
    returns what it works in. A matrix of zeros stays zero.
    """
    wide = N.shape[-2] <= N.shape[-1]
    X: Tensor = (N if wide else N.mT).reshape(-1, min(N.shape[-2:]), max(N.shape[-2:]))
    X = X / (torch.linalg.matrix_norm(X, keepdim=True) + 1e-7)
    if X.is_cuda:
        X = X.bfloat16()
    triples = COEFFICIENTS[coefficients]
    for step in range(steps):
        a, b, c = triples[min(step, len(triples) - 1)]
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X.reshape(N.shape) if wide else X.mT.reshape(N.shape)


def equilibrate(N: Tensor) -> Tensor:
    """Rows of N [..., rows, cols] at unit length; rows shorter than 1e-7 are divided by 1e-7."""
    lengths: Tensor = torch.linalg.vector_norm(N, dim=-1, keepdim=True)
    return N / lengths.clamp_min(1e-7)


class Bank:
    """Matrices of one shape as one tensor, of which this rank owns a slice."""

    def __init__(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup | None) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.group = group
        self.ranks = 1 if group is None else dist.get_world_size(group)
        self.own = math.ceil(len(self.parameters) / self.ranks)
        self.shape = self.parameters[0].shape

    @property
    def name(self) -> str:
        """`ROWSxCOLS`: the bank's key in a state dict."""
        return f"{self.shape[0]}x{self.shape[1]}"

    def reduce(self) -> tuple[Tensor, dist.Work | None]:
        """Sum of the ranks' gradients, own slice [own, rows, cols], ready once the work is; zero where padded."""
        grads = [value.grad for value in self.parameters if value.grad is not None]
        if len(grads) != len(self.parameters):
            raise ValueError(f"bank {self.name}: {len(grads)} of {len(self.parameters)} matrices have a gradient")
        if self.ranks == 1:
            return torch.stack(grads), None
        stacked = grads[0].new_zeros(self.ranks * self.own, *self.shape)
        torch.stack(grads, out=stacked[: len(grads)])
        slice_ = stacked.new_empty(self.own, *self.shape)
        return slice_, reduce_scatter(slice_, stacked, group=self.group, async_op=True)

    def gather(self, slice_: Tensor) -> tuple[Tensor, dist.Work | None]:
        """All slices [≥ n, rows, cols] in rank order, ready once the work is."""
        if self.ranks == 1:
            return slice_, None
        whole = slice_.new_empty(self.ranks * self.own, *self.shape)
        return whole, all_gather(whole, slice_.contiguous(), group=self.group, async_op=True)

    def apply(self, update: Tensor, *, decay: float, rate: float) -> None:
        """W ← decay·W - rate·√max(1, rows/cols)·update for all matrices."""
        rate *= math.sqrt(max(1.0, self.shape[0] / self.shape[1]))
        torch._foreach_mul_(self.parameters, decay)
        updates = update[: len(self.parameters)].to(self.parameters[0].dtype).unbind()
        torch._foreach_add_(self.parameters, list(updates), alpha=-rate)


class Muon(torch.optim.Optimizer):
    """MuonEq-R as a torch optimizer over 2-D parameters; `lr`, `momentum` and `weight_decay` are read each step.

    The momentum of a bank is the state of the bank's first parameter: fp32 [own, rows, cols], complete for this rank.
    `group` = None is one process alone. All ranks must call `reduce` and `step` together.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        newton_schulz_steps: int = 5,
        coefficients: str = "fixed",
        equilibrate_rows: bool = True,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.newton_schulz_steps = newton_schulz_steps
        self.coefficients = coefficients
        self.equilibrate_rows = equilibrate_rows
        self.banks = self._banks(group)
        self._reduced: list[Tensor] | None = None
        for bank in self.banks:
            first = bank.parameters[0]
            self.state[first]["momentum"] = first.detach().new_zeros(bank.own, *bank.shape)

    def _banks(self, group: dist.ProcessGroup | None) -> list[Bank]:
        """One bank per shape, the largest first: its transfer hides behind the work on the smaller ones."""
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in self.param_groups[0]["params"]:
            shapes.setdefault(parameter.shape, []).append(parameter)
        banks = [Bank(parameters, group) for parameters in shapes.values()]
        return sorted(banks, key=lambda bank: -len(bank.parameters) * bank.shape.numel())

    def momentum(self, bank: Bank) -> Tensor:
        """The bank's momentum, this rank's slice [own, rows, cols]."""
        return self.state[bank.parameters[0]]["momentum"]  # type: ignore[no-any-return]

    def reduce(self) -> list[Tensor]:
        """Mean gradients over the ranks, own slice of each bank; what is done to them in place, `step` will use."""
        pending = [bank.reduce() for bank in self.banks]
        self._reduced = []
        for bank, (slice_, work) in zip(self.banks, pending, strict=True):
            if work is not None:
                work.wait()
                slice_ /= bank.ranks
            self._reduced.append(slice_)
        return self._reduced

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update from the gradients, reduced here unless `reduce` was called since the last step."""
        if closure is not None:
            raise ValueError("Muon takes no closure; compute the gradients before the step")
        reduced, self._reduced = self._reduced if self._reduced is not None else self.reduce(), None
        settings = self.param_groups[0]
        decay, rate = 1 - settings["lr"] * settings["weight_decay"], settings["lr"]
        pending = None
        for bank, G in zip(self.banks, reduced, strict=True):
            gathering = bank, *bank.gather(self._direction(G, self.momentum(bank), settings["momentum"]))
            if pending:
                _finish(*pending, decay=decay, rate=rate)
            pending = gathering
        if pending:
            _finish(*pending, decay=decay, rate=rate)

    def _direction(self, G: Tensor, M: Tensor, momentum: float) -> Tensor:
        """O of the slice; moves M."""
        M.mul_(momentum).add_(G)
        N = G.add(M, alpha=momentum)
        if self.equilibrate_rows:
            N = equilibrate(N)
        return newton_schulz(N, steps=self.newton_schulz_steps, coefficients=self.coefficients)


def _finish(bank: Bank, update: Tensor, work: dist.Work | None, *, decay: float, rate: float) -> None:
    if work is not None:
        work.wait()
    bank.apply(update, decay=decay, rate=rate)
