"""GPTQ: codes for matrices that make up, column by column, for what rounding loses.

`solve` takes a `Problem` for each matrix: weights, the Hessian of their inputs (`trainer.hessians`) and row scales
(`trainer.clipping`). Matrices with one Hessian are stacked by rows, stacks of one shape go through the loop together;
`trainer.quantizer` calls it for a whole model.

The algorithm is GPTQ's (arXiv:2210.17323), written without an inverse. Let H = RRᵀ with R upper triangular and the
columns in the order in which they are rounded. GPTQ has H⁻¹ = UᵀU, thus U = R⁻¹, and with N = diag(U)⁻¹U it rounds
w'_j = w_j - Σ_{k<j} (w'_k - ŵ_k) N_kj to ŵ_j. As matrices: W' = W - (W' - Ŵ)(N - I), so W - Ŵ = (W' - Ŵ)N, and
W' = W + (W - Ŵ)(N⁻¹ - I), where N⁻¹ = U⁻¹ diag(U) = R diag(R)⁻¹. Hence

    w'_j = w_j + Σ_{k<j} (w_k - ŵ_k) R_kj / R_jj

which is LDLQ (QuIP, arXiv:2307.13304, shows that the two are one): a Cholesky factor is all that it needs, and what it
feeds back are losses against the *given* weights, which do not grow from column to column.

Inside, columns come first (row k of an array is column k of the weights) and stand in the reverse of the order in which
they are rounded: then H = CCᵀ with the lower triangular C that Cholesky gives, and the last one is rounded first.
Weights are in units of their row's step, so rounding them gives codes; the feedback is the same in any unit.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.clipping import refuse_non_finite
from trainer.errors import ArtifactError
from trainer.quantized import Protected, q_max

MAX_DAMPING = 1.0
"""Largest damping that a Hessian which is not positive definite is met with, in shares of its (mean) diagonal."""
MAX_STEPS = 2.0**100
"""Weights beyond this many steps count as this many, so that no sum of losses overflows fp32."""
ROWS = 4096
"""Rows that go through the loop together on a CPU, unless one stack has more: few enough for a core's cache, and for
work on every core."""
LEAD = 128
"""Columns that Cholesky eliminates in float64: at 2,048 columns the factor is off by a fifteenth of fp32's error."""

Damping = Literal["mean", "diagonal"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """One matrix: `weight` [rows, cols], `hessian` [cols, cols], `scales` fp16 [rows], positive.

    `hessian` is the same object for all matrices that share an input. `damping` is a share of its diagonal. The columns
    of `protected` have bits and scales of their own.
    """

    weight: Tensor
    hessian: Tensor
    scales: Tensor
    bits: int
    damping: float
    name: str = "matrix"
    protected: Protected | None = None


Stack = list[Problem]
"""Problems with one Hessian, damping and number of bits, whose rows are stacked."""
Batch = list[Stack]
"""Stacks of one shape and number of bits, which go through the loop together."""


def solve(problems: Sequence[Problem], *, block: int, damping_by: Damping = "mean") -> list[Tensor]:
    """GPTQ: codes int8 [rows, cols] of every problem that lower tr((W-Ŵ) H (W-Ŵ)ᵀ) below what rounding leaves.

    Columns are rounded one after the other by descending diag H, `block` of them at a time with feedback by columns,
    everything else by products. H gets damping·mean(diag H)·I, or damping·diag(H) if `damping_by` is "diagonal", and
    ten times that until it is positive definite. Inputs that were never seen (H_jj = 0) get code 0. What is solved
    beside a problem may change the last bits of its sums and so a few of its codes; the number of threads does not.
    Raises ArtifactError, by name, for shapes that don't fit, NaN or infinity, and a Hessian that MAX_DAMPING doesn't
    make positive definite.
    """
    for problem in problems:
        _check_shapes(problem)
    _check_finite(problems)
    batches = _batches(problems)
    work = functools.partial(_solve_batch, block=block, damping_by=damping_by)
    host = all(problem.weight.device.type == "cpu" for problem in problems)
    done = _on_threads(work, batches) if host else [work(batch) for batch in batches]
    codes = {
        id(problem): part
        for batch, parts in zip(batches, done, strict=True)
        for problem, part in zip([problem for stack in batch for problem in stack], parts, strict=True)
    }
    return [codes[id(problem)] for problem in problems]


def _check_shapes(problem: Problem) -> None:
    if problem.weight.ndim != 2 or not problem.weight.numel():
        raise ArtifactError(f"{problem.name}: weights of shape {list(problem.weight.shape)}, expected rows and columns")
    rows, columns = problem.weight.shape
    if problem.hessian.shape != (columns, columns) or problem.scales.shape != (rows,):
        raise ArtifactError(
            f"{problem.name}: Hessian of shape {list(problem.hessian.shape)} and scales of "
            f"{list(problem.scales.shape)}, expected {[columns, columns]} and {[rows]} for weights of {[rows, columns]}"
        )


def _check_finite(problems: Sequence[Problem]) -> None:
    """Raise ArtifactError for NaN or infinity, with one wait for the device: a sum is finite only if its parts are."""
    parts = {id(p.weight): (p.weight, f"weights of {p.name}") for p in reversed(problems)}
    parts |= {id(p.hessian): (p.hessian, f"Hessian of {p.name}") for p in reversed(problems)}
    if parts and not bool(torch.stack([values.sum() for values, _ in parts.values()]).isfinite().all()):
        for values, what in reversed(parts.values()):
            refuse_non_finite(values, what)


def _batches(problems: Sequence[Problem]) -> list[Batch]:
    """Stacks of one shape, bits and device together, the costliest batches first.

    On a CPU a batch has at most ROWS rows, unless one stack has more (the embedding's 8,192): that is one by itself.
    """
    stacks: dict[tuple[Any, ...], Stack] = {}
    for problem in problems:
        alone = problem if problem.protected else None
        stacks.setdefault((id(problem.hessian), problem.damping, problem.bits, alone), []).append(problem)
    alike: dict[tuple[Any, ...], list[Stack]] = {}
    for stack in stacks.values():
        first, rows = stack[0], sum(len(problem.weight) for problem in stack)
        alone = first if first.protected else None
        alike.setdefault((len(first.hessian), rows, first.bits, first.weight.device, alone), []).append(stack)
    batches, costs = [], []
    for (columns, rows, _, device, _), same in alike.items():
        size = max(ROWS // rows, 1) if device.type == "cpu" else len(same)
        size = -(-len(same) // -(-len(same) // size))
        for start in range(0, len(same), size):
            batches.append(same[start : start + size])
            costs.append(len(batches[-1]) * columns**2 * (columns + 3 * rows))
    return [batches[i] for i in sorted(range(len(batches)), key=lambda i: -costs[i])]


def _on_threads(work: Callable[[Batch], list[Tensor]], batches: Sequence[Batch]) -> list[list[Tensor]]:
    """`work` on every batch, on as many threads as torch may use, in each of which torch uses one.

    Threads that wait for each other inside every operation gain little on arrays this small, and lose a lot where
    other work holds a core (benchmarks/LOG.md); besides, sums then do not depend on how many there are.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, batches))
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _solve_batch(batch: Batch, *, block: int, damping_by: Damping) -> list[Tensor]:
    """Codes of every problem of a batch, in its order."""
    diagonals = [stack[0].hessian.diagonal() for stack in batch]
    orders = [diagonal.argsort(descending=True, stable=True).flip(0) for diagonal in diagonals]
    rows, columns = sum(len(problem.weight) for problem in batch[0]), len(orders[0])
    lost = torch.empty(columns, len(batch), rows, device=orders[0].device)
    for index, (stack, order) in enumerate(zip(batch, orders, strict=True)):
        # Joined, then transposed: torch transposes a whole array into a new one at three times the speed of any other.
        weight = torch.cat([problem.weight for problem in stack]).T.contiguous()
        step = torch.cat([problem.scales for problem in stack]).float()
        torch.div(weight.index_select(0, order), step, out=lost[:, index])
    lost.clamp_(-MAX_STEPS, MAX_STEPS)
    rounded = lost.clone()
    grid = _Grid.of(batch[0][0], orders[0])
    _round(_feedback(batch, orders, damping_by=damping_by), lost, rounded, 0, columns, block=block, grid=grid)
    codes = []
    for index, (stack, order) in enumerate(zip(batch, orders, strict=True)):
        whole = grid.codes(rounded[:, index]).index_select(0, order.argsort()).mul_((diagonals[index] != 0)[:, None])
        parts = torch.split(whole, [len(problem.weight) for problem in stack], dim=1)
        codes += [part.T.contiguous() for part in parts]
    return codes


@dataclasses.dataclass(frozen=True, eq=False)
class _Grid:
    """Where weights are rounded to, in steps of their row: whole numbers within ±limit.

    In the columns that are `inside` it is the multiples of `ratio` [rows], at most `inner` of them.
    """

    limit: int
    inside: list[bool]
    ratio: Tensor
    inner: int

    @staticmethod
    def of(problem: Problem, order: Tensor) -> _Grid:
        """That of a problem whose columns stand in `order`."""
        limit, own = q_max(problem.bits), problem.protected
        if own is None:
            return _Grid(limit, [], problem.scales, limit)
        inside = [own.start <= j < own.start + own.width for j in order.tolist()]
        return _Grid(limit, inside, own.scales.float() / problem.scales.float(), q_max(own.bits))

    def round_(self, j: int, column: Tensor) -> Tensor:
        """Column j [stacks, rows], rounded in place."""
        if self.inside and self.inside[j]:
            return column.div_(self.ratio).round_().clamp_(-self.inner, self.inner).mul_(self.ratio)
        return column.round_().clamp_(-self.limit, self.limit)

    def codes(self, rounded: Tensor) -> Tensor:
        """int8 codes of rounded columns [cols, rows]."""
        codes = rounded.to(torch.int8)
        if self.inside:
            codes[self.inside] = rounded[self.inside].div_(self.ratio).round_().to(torch.int8)
        return codes


def _feedback(batch: Batch, orders: list[Tensor], *, damping_by: Damping) -> Tensor:
    """`_unit_factor` of each stack's damped Hessian, fp32 [stacks, cols, cols], with one wait for the device."""
    columns = len(orders[0])
    # By columns, as LAPACK wants it: what is symmetric may be written by rows.
    H = torch.empty(len(batch), columns, columns, device=orders[0].device).mT
    failed = []
    for index, (stack, order) in enumerate(zip(batch, orders, strict=True)):
        _damp(stack[0].hessian, order, stack[0].damping, damping_by, out=H[index].mT)
        failed.append(_unit_factor(H[index]))
    for index in torch.stack(failed).nonzero().flatten().tolist():
        _insist(batch[index][0], orders[index], damping_by, out=H[index])
    return H


def _insist(problem: Problem, order: Tensor, damping_by: Damping, *, out: Tensor) -> None:
    """`_unit_factor` of a Hessian that was not positive definite, with ten times the damping until it is."""
    share = problem.damping
    while share < MAX_DAMPING:
        share = min(max(10 * share, 1e-6), MAX_DAMPING)
        _damp(problem.hessian, order, share, damping_by, out=out.mT)
        if not _unit_factor(out):
            return
    raise ArtifactError(
        f"Hessian of {problem.name} is not positive definite, even with {share:g} of its "
        f"{'mean ' if damping_by == 'mean' else ''}diagonal added; collect it again on more calibration batches"
    )


def _damp(hessian: Tensor, order: Tensor, share: float, damping_by: Damping, *, out: Tensor) -> None:
    """H in another order, with its damping and 1 for inputs that were never seen, to `out` fp32 [cols, cols]."""
    torch.index_select(hessian.float().index_select(0, order), 1, order, out=out)
    diagonal = out.diagonal()
    diagonal.add_(diagonal == 0)
    diagonal.add_(share * (diagonal.double().mean() if damping_by == "mean" else diagonal))


def _unit_factor(H: Tensor) -> Tensor:
    """C diag(C)⁻¹ of H = CCᵀ, fp32 [cols, cols], in place of H and undefined above the diagonal; returns 0 if C exists.

    The first LEAD columns, with which goes what all columns share, are eliminated in float64 and the rest in fp32.
    """
    lead = H[:, :LEAD].double()
    failed: Tensor
    top, failed = torch.linalg.cholesky_ex(lead[:LEAD])
    left = torch.linalg.solve_triangular(top.mT, lead[LEAD:], upper=True, left=False)
    rest = H[LEAD:, LEAD:].double().addmm_(left, left.mT, alpha=-1).float()
    failed = failed + torch.linalg.cholesky_ex(rest, out=(rest, torch.empty_like(failed)))[1]
    H[:LEAD, :LEAD] = top / top.diagonal()
    H[LEAD:, :LEAD] = left / top.diagonal()
    torch.div(rest, rest.diagonal(), out=H[LEAD:, LEAD:])
    return failed


def _round(feedback: Tensor, lost: Tensor, rounded: Tensor, start: int, end: int, *, block: int, grid: _Grid) -> None:
    """Round columns `start` to `end` of `rounded` in place, the last one first; `lost` becomes w - ŵ of each.

    By halves: what the later half lost goes to the earlier one in one product.
    """
    if end - start > block:
        middle = end - block * (1 << ((end - start - 1) // block).bit_length() - 1)
        _round(feedback, lost, rounded, middle, end, block=block, grid=grid)
        earlier, later = slice(start, middle), slice(middle, end)
        rounded[earlier].transpose(0, 1).baddbmm_(feedback[:, later, earlier].mT, lost[later].transpose(0, 1))
        _round(feedback, lost, rounded, start, middle, block=block, grid=grid)
        return
    shares = feedback[:, start:end, start:end].permute(1, 2, 0)[..., None]
    columns = rounded[start:end]
    for j, (column, error) in reversed(list(enumerate(zip(columns, lost[start:end], strict=True)))):
        error.sub_(grid.round_(start + j, column))
        columns[:j].addcmul_(shares[j, :j], error)
