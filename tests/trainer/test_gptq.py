"""GPTQ against a slow oracle, first principles, and what must hold for any weights and Hessians."""

from __future__ import annotations

import dataclasses
import unittest.mock
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given
from torch import Tensor

from tests.oracles import plain_gptq, quantize, surgeon
from tests.trainer.matrices import hessian as correlated
from tests.trainer.matrices import loss, weights
from trainer import gptq
from trainer.clipping import round_codes, row_scales
from trainer.errors import ArtifactError
from trainer.gptq import Problem, solve
from trainer.quantized import Protected, QuantizedMatrix, q_max

BITS = st.integers(2, 8)


def problem(rows: int, columns: int, *, seed: int, bits: int = 6, k: float = 12.85, **changes: Any) -> Problem:
    """Gaussian weights, a correlated Hessian and SDClip's scales, with 1 % of damping."""
    weight = 0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed + 1))
    scales = row_scales(weight, bits=bits, k=k)
    made = Problem(weight=weight, hessian=correlated(columns, seed=seed), scales=scales, bits=bits, damping=0.01)
    return dataclasses.replace(made, **changes)


def unseen(hessian: Tensor, *columns: int) -> Tensor:
    """The Hessian of inputs that are always 0 in some columns."""
    hessian = hessian.clone()
    hessian[list(columns)] = 0
    hessian[:, list(columns)] = 0
    return hessian


def expected(one: Problem, *, damping_by: str = "mean") -> Tensor:
    """The oracle's codes in float64."""
    return plain_gptq(
        one.weight,
        one.hessian,
        one.scales,
        bits=one.bits,
        damping=one.damping,
        protected=one.protected,
        damping_by=damping_by,
    )


def agreement(codes: Tensor, others: Tensor) -> float:
    """Share of codes that are equal."""
    assert codes.dtype == others.dtype == torch.int8
    return float((codes == others).double().mean())


def mean_error(one: Problem, codes: Tensor) -> float:
    return loss(one.weight, QuantizedMatrix(codes, one.scales, one.bits, one.protected), one.hessian)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """torch with two threads, and afterwards with what it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("rows", "columns", "bits", "block"),
    [(40, 60, 6, 16), (24, 130, 4, 128), (16, 64, 8, 1), (200, 300, 6, 16), (30, 257, 3, 7), (5, 1, 6, 4)],
)
@pytest.mark.parametrize("damping_by", ["mean", "diagonal"])
def test_codes_are_the_oracles(rows: int, columns: int, bits: int, block: int, damping_by: gptq.Damping) -> None:
    """Halves, units of steps, fp32 and feedback without an inverse change no code in 1,000 of a plain float64 GPTQ."""
    one = problem(rows, columns, seed=rows, bits=bits, k=6.0)
    codes = solve([one], block=block, damping_by=damping_by)[0]
    assert agreement(codes, expected(one, damping_by=damping_by)) >= 0.999
    assert codes.shape == one.weight.shape
    assert codes.is_contiguous()


def test_codes_are_those_of_the_optimal_brain_surgeon() -> None:
    """Feedback by a Cholesky factor stands for inverting the Hessian of the remaining columns again and again."""
    one = problem(32, 24, seed=3, bits=4, k=5.0, damping=0.0)
    assert agreement(solve([one], block=8)[0], surgeon(one.weight, one.hessian, one.scales, bits=4)) >= 0.999


@pytest.mark.parametrize(("bits", "k"), [(6, 12.85), (4, 6.0), (8, 20.0)])
def test_the_error_on_calibration_inputs_is_below_plain_rounding(bits: int, k: float) -> None:
    """Over 20 draws GPTQ leaves less than 60 % of rounding's H-weighted error, and not once more than all of it."""
    shares = []
    for seed in range(20):
        one = problem(32, 64, seed=100 + seed, bits=bits, k=k)
        rounded = round_codes(one.weight, one.scales, bits=bits)
        shares.append(mean_error(one, solve([one], block=32)[0]) / mean_error(one, rounded))
    assert sum(shares) / len(shares) < 0.6
    assert sum(share > 1 for share in shares) == 0


@given(st.integers(0, 2**32 - 1), BITS, st.integers(1, 40))
def test_uncorrelated_inputs_leave_plain_rounding(seed: int, bits: int, block: int) -> None:
    """With a diagonal Hessian there is nobody to push an error to: the codes are those of rounding."""
    generator = torch.Generator().manual_seed(seed)
    weight, diagonal = torch.randn(4, 20, generator=generator), torch.rand(20, generator=generator) + 0.1
    scales = row_scales(weight, bits=bits, k=4.0)
    codes = quantize(weight, torch.diag(diagonal), scales, bits=bits, damping=0.01, block=block)
    assert torch.equal(codes, round_codes(weight, scales, bits=bits))


@given(weights(), BITS, st.floats(0.5, 40), st.integers(0, 2**31))
@example(torch.full((2, 8), 3e38), 8, 20.0, 0)
@example(torch.full((1, 1), 1e-40), 2, 1.0, 0)
def test_codes_stay_within_their_bits(weight: Tensor, bits: int, k: float, seed: int) -> None:
    """However large a weight or the error that is pushed on, no code leaves ±q_max; rows of zeros get zeros."""
    scales = row_scales(weight, bits=bits, k=k)
    hessian = correlated(weight.shape[1], seed=seed)
    codes = quantize(weight, hessian, scales, bits=bits, damping=0.01, block=8)
    assert int(codes.int().abs().max()) <= q_max(bits)
    assert not codes[(weight == 0).all(dim=1)].any()


def test_weights_of_more_steps_than_fp32_can_hold_have_the_oracles_codes() -> None:
    """3e38 at the smallest step is 5e45 steps: what such a row feeds back overflows nowhere."""
    signs = torch.randn(6, 24, generator=torch.Generator().manual_seed(21)).sign()
    one = problem(6, 24, seed=21, weight=3e38 * signs, scales=torch.full((6,), 2.0**-24).half())
    assert agreement(solve([one], block=4)[0], expected(one)) == 1.0


def test_a_huge_weight_leaves_the_other_rows_alone() -> None:
    """One outlier of a million steps, clipped, changes no row but its own, which stays as the oracle has it."""
    one = problem(6, 40, seed=20)
    spoiled = one.weight.clone()
    spoiled[2, 7] = 1e6 * float(one.scales[2])
    codes, found = (solve([dataclasses.replace(one, weight=w)], block=16)[0] for w in (one.weight, spoiled))
    rows = [0, 1, 3, 4, 5]
    assert torch.equal(found[rows], codes[rows])
    assert abs(int(found[2, 7])) == q_max(6)
    assert agreement(found[2], expected(dataclasses.replace(one, weight=spoiled))[2]) >= 0.95


def test_inputs_that_were_never_seen_get_code_0() -> None:
    """Columns with H_jj = 0 decode to 0 and leave the other codes as the oracle has them without those columns."""
    whole = problem(30, 60, seed=4)
    dead = [0, 7, 8, 33, 59]
    alive = [j for j in range(60) if j not in dead]
    one = dataclasses.replace(whole, hessian=unseen(whole.hessian, *dead), damping=0.0)
    codes = solve([one], block=16)[0]
    assert not codes[:, dead].any()
    rest = dataclasses.replace(one, weight=one.weight[:, alive], hessian=one.hessian[alive][:, alive])
    assert agreement(codes[:, alive], expected(rest)) >= 0.999
    assert agreement(codes, expected(one)) >= 0.999


def test_inputs_that_are_always_zero_give_zeros() -> None:
    """A site that saw nothing but zeros has a Hessian of zeros; its matrix is quantized to zeros, not refused."""
    assert not solve([problem(3, 4, seed=10, hessian=torch.zeros(4, 4))], block=2)[0].any()


def test_the_order_of_the_columns_does_not_matter() -> None:
    """Permuting inputs permutes the codes: the loop runs by descending diagonal and undoes its order."""
    one = problem(24, 50, seed=5)
    shuffle = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    other = dataclasses.replace(one, weight=one.weight[:, shuffle], hessian=one.hessian[shuffle][:, shuffle])
    codes, shuffled = (solve([each], block=16)[0] for each in (one, other))
    assert agreement(shuffled, codes[:, shuffle].contiguous()) >= 0.999
    rounded = round_codes(one.weight, one.scales, bits=6)
    assert agreement(codes, rounded) < 0.9, "the control: this problem must be one that GPTQ changes"


def test_solve_leaves_its_arguments_alone_and_repeats() -> None:
    """Two calls on the same tensors give the same codes and change nothing, gradients asked for or not."""
    one = problem(16, 40, seed=6)
    one = dataclasses.replace(one, hessian=unseen(one.hessian, 3), weight=one.weight.requires_grad_())
    kept = [tensor.detach().clone() for tensor in (one.weight, one.hessian, one.scales)]
    assert torch.equal(solve([one], block=16)[0], solve([one], block=16)[0])
    assert all(torch.equal(a, b) for a, b in zip(kept, (one.weight, one.hessian, one.scales), strict=True))


def mixed() -> list[Problem]:
    """Problems of several shapes, bits and dampings; some share a Hessian; one has protected columns."""
    made = [problem(24, 40, seed=30 + i) for i in range(3)] + [problem(24, 40, seed=34, bits=4, k=6.0)]
    made += [problem(rows, 40, seed=40 + rows, hessian=made[0].hessian) for rows in (8, 8, 16)]
    made += [problem(24, 40, seed=50, hessian=made[0].hessian, damping=0.1, bits=bits, k=2.0) for bits in (6, 4)]
    made.append(problem(12, 150, seed=51))
    own = Protected(8, 10, 8, row_scales(made[1].weight[:, 8:18], bits=8, k=12.85))
    made.append(dataclasses.replace(made[1], protected=own))
    return [dataclasses.replace(one, name=f"matrix {i}") for i, one in enumerate(made)]


@pytest.mark.parametrize("rows", [1, 60, 4096])
def test_problems_solved_together_get_the_codes_they_get_alone(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stacks and batches of any size, in any order, change no code in 1,000 of any problem, and mix up none."""
    monkeypatch.setattr(gptq, "ROWS", rows)
    problems = mixed()
    together, backwards = solve(problems, block=16), solve(problems[::-1], block=16)[::-1]
    for one, codes, others in zip(problems, together, backwards, strict=True):
        assert agreement(codes, solve([one], block=16)[0]) >= 0.999, one.name
        assert agreement(codes, others) >= 0.999, one.name
        assert agreement(codes, expected(one)) >= 0.999, one.name


def test_a_shared_hessian_is_factored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices with one Hessian take one Cholesky, and give the codes that they have with copies of it."""
    first = problem(24, 40, seed=60)
    shared = [first, *(problem(rows, 40, seed=60 + rows, hessian=first.hessian) for rows in (8, 16))]
    copies = [dataclasses.replace(one, hessian=one.hessian.clone()) for one in shared]
    factor = unittest.mock.Mock(side_effect=gptq._unit_factor)
    monkeypatch.setattr(gptq, "_unit_factor", factor)
    codes, others = solve(shared, block=16), solve(copies, block=16)
    assert factor.call_count == 1 + 3
    assert all(agreement(a, b) >= 0.999 for a, b in zip(codes, others, strict=True))


def threads_elsewhere() -> int:
    """Threads that torch uses in a thread that begins now."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


@pytest.mark.usefixtures("two_threads")
def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads give one thread's codes to the bit, and torch has its threads back, also after an error."""
    seen, factor = set(), gptq._unit_factor

    def watched(H: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        return factor(H)

    monkeypatch.setattr(gptq, "_unit_factor", watched)
    codes = solve(mixed(), block=16)
    assert seen == {1}
    assert (torch.get_num_threads(), threads_elsewhere()) == (2, 2)
    with pytest.raises(ArtifactError):
        solve([*mixed(), problem(3, 2, seed=8, hessian=torch.tensor([[1.0, 9.0], [9.0, 1.0]]))], block=16)
    assert (torch.get_num_threads(), threads_elsewhere()) == (2, 2)
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(codes, solve(mixed(), block=16), strict=True))


@pytest.mark.parametrize(("start", "width", "bits"), [(0, 8, 8), (17, 10, 8), (56, 8, 3), (0, 64, 5)])
def test_protected_columns_are_rounded_inside_the_loop(start: int, width: int, bits: int) -> None:
    """Columns with bits and scales of their own get the oracle's codes, and so do those that see their errors."""
    one = problem(24, 64, seed=70, bits=4, k=6.0)
    scales = row_scales(one.weight[:, start : start + width], bits=bits, k=9.0)
    own = dataclasses.replace(one, protected=Protected(start, width, bits, scales))
    codes = solve([own], block=16)[0]
    assert agreement(codes, expected(own)) >= 0.999
    if bits > 4 and width < 64:
        assert mean_error(own, codes) < mean_error(one, solve([one], block=16)[0])
        assert int(codes.abs().max()) > q_max(4)
        others = [j for j in range(64) if not start <= j < start + width]
        assert agreement(codes[:, others], expected(one)[:, others]) < 0.99, "feedback must carry the finer codes on"


def test_what_all_columns_share_costs_no_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs with a large mean: the factor is 3 times nearer float64's with its first columns in float64."""
    X = torch.randn(1200, 400, generator=torch.Generator().manual_seed(13)) + 3
    H = X.T @ X
    C = torch.linalg.cholesky(H.double())
    off = {}
    for lead in (gptq.LEAD, 0):
        monkeypatch.setattr(gptq, "LEAD", lead)
        found = H.clone().mT
        assert not gptq._unit_factor(found)
        off[lead] = float((found.tril() - C / C.diagonal()).norm())
    assert 3 * off[128] < off[0]


def test_too_few_samples_are_met_with_damping() -> None:
    """A Hessian of lower rank, and one that is a little indefinite, still give codes close to the weights."""
    X = torch.randn(10, 40, generator=torch.Generator().manual_seed(7))
    H = X.T @ X
    one = problem(8, 40, seed=7, bits=8, k=5.0, damping=0.0)
    for hessian in (H, H - 0.02 * H.diagonal().mean() * torch.eye(40)):
        codes = solve([dataclasses.replace(one, hessian=hessian)], block=16)[0]
        seen = dataclasses.replace(one, hessian=H)
        assert mean_error(seen, codes) <= mean_error(seen, round_codes(one.weight, one.scales, bits=8))


def short_of_rank(columns: int, *, seed: int) -> Tensor:
    """A Hessian that needs 5 % of its mean diagonal."""
    X = torch.randn(columns // 3, columns, generator=torch.Generator().manual_seed(seed))
    hessian = X.T @ X
    hessian -= 0.05 * hessian.diagonal().mean() * torch.eye(columns)
    return hessian


@pytest.mark.parametrize("sound", [0, 130])
def test_damping_rises_tenfold_from_what_was_asked(sound: int) -> None:
    """A Hessian that needs 5 % of its mean diagonal gives the codes of damping 0.1 when 0.0001 is asked for.

    So it does where that shows only behind the columns that are eliminated in float64.
    """
    hessian = short_of_rank(60, seed=12)
    hessian = torch.block_diag(0.4 * hessian.diagonal().mean() * torch.eye(sound), hessian)
    one = problem(200, 60 + sound, seed=12, bits=8, k=5.0, hessian=hessian)
    found, near, exact = (
        solve([dataclasses.replace(one, damping=damping)], block=16)[0] for damping in (0.0001, 0.111, 0.1)
    )
    assert agreement(found, exact) >= 0.9999
    assert agreement(near, exact) < 0.9999, "the control: these codes must show a damping that is a little off"


def test_damping_rises_for_that_hessian_alone() -> None:
    """Beside a Hessian that needs more damping the others of its batch keep theirs, and it gets what it gets alone."""
    good = [problem(40, 60, seed=80 + i, bits=8, k=5.0, damping=0.001) for i in range(2)]
    bad = problem(40, 60, seed=90, bits=8, k=5.0, damping=0.001, hessian=short_of_rank(60, seed=12))
    first, found, last = solve([good[0], bad, good[1]], block=16)
    assert agreement(first, expected(good[0])) >= 0.999
    assert agreement(last, expected(good[1])) >= 0.999
    assert agreement(found, expected(dataclasses.replace(bad, damping=0.1))) >= 0.999


@pytest.mark.parametrize(("damping_by", "of"), [("mean", "mean diagonal"), ("diagonal", "diagonal")])
def test_an_indefinite_hessian_is_an_error_that_names_the_matrix(damping_by: gptq.Damping, of: str) -> None:
    """What no damping up to MAX_DAMPING makes positive definite is refused."""
    head = problem(3, 2, seed=8, hessian=torch.tensor([[1.0, 9.0], [9.0, 1.0]]), name="head")
    with pytest.raises(ArtifactError, match=rf"Hessian of head is not positive definite, even with 1 of its {of} add"):
        solve([problem(3, 2, seed=9), head], block=2, damping_by=damping_by)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_numbers_are_refused_by_name(bad: float) -> None:
    """NaN or infinity in weights or Hessian is an error that names the first such matrix and counts them."""
    one = problem(3, 4, seed=0, name="up")
    spoiled, hessian = one.weight.clone(), one.hessian.clone()
    spoiled[1, 2] = hessian[0, 1] = bad
    later = dataclasses.replace(one, weight=spoiled, name="down")
    with pytest.raises(ArtifactError, match=r"weights of up: 1 of 12 are NaN or infinite"):
        solve([problem(3, 4, seed=1), dataclasses.replace(one, weight=spoiled.clone()), later], block=2)
    with pytest.raises(ArtifactError, match=r"Hessian of up: 1 of 16"):
        solve([dataclasses.replace(one, hessian=hessian), dataclasses.replace(one, hessian=hessian, name="k")], block=2)


def test_finite_numbers_whose_sum_is_infinite_are_taken() -> None:
    """What fp32 can't add up may still be finite: it is looked at number by number, and quantized."""
    weight = torch.full((3, 4), 3e38)
    scales = torch.full((3,), 65504.0).half()
    codes = quantize(weight, torch.eye(4), scales, bits=6, damping=0.01, block=2)
    assert torch.equal(codes, torch.full((3, 4), 31, dtype=torch.int8))


@pytest.mark.parametrize("columns", [3, 5])
def test_shapes_that_do_not_fit_are_refused(columns: int) -> None:
    """A Hessian of another width than the matrix, scales for other rows, and no weights are errors with the shapes."""
    one = problem(3, 4, seed=9, name="q")
    with pytest.raises(ArtifactError, match=rf"q: Hessian of shape \[{columns}, {columns}\].*\[3, 4\]"):
        solve([dataclasses.replace(one, hessian=torch.eye(columns))], block=2)
    with pytest.raises(ArtifactError, match=r"scales of \[2\], expected \[4, 4\] and \[3\]"):
        solve([dataclasses.replace(one, scales=one.scales[:2])], block=2)
    for empty in (torch.zeros(0, 4), torch.zeros(3, 0), torch.zeros(4)):
        with pytest.raises(ArtifactError, match=r"q: weights of shape \[.*\], expected rows and columns"):
            solve([dataclasses.replace(one, weight=empty)], block=2)
