"""Low-rank corrections: which matrices get one, how much it mends, and its codes."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given
from torch import Tensor

from tests.oracles import quantize
from tests.trainer.matrices import hessian, loss
from trainer.clipping import row_scales
from trainer.lqer import corrected, low_rank
from trainer.quantized import Correction, QuantizedMatrix, dequantize_matrix


def low_rank_plus_noise(rows: int, columns: int, *, seed: int, rank: int = 2, noise: float = 0.1) -> Tensor:
    """Losses [rows, columns] in float64 whose largest part has `rank`, as those of a network's matrices have."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, rank, generator=generator).double() for n in (rows, columns))
    return left @ right.T / rank**0.5 + noise * torch.randn(rows, columns, generator=generator)


def truncated_svd(lost: Tensor, *, rank: int, group: int) -> Tensor:
    """LQER as pg#1797 codes it: A = U_r S_r in {-2..1} times max|A|/1.5, B = V_rᵀ in {-8..7} times max/7.5 a group."""
    U, S, V = torch.linalg.svd(lost, full_matrices=False)
    A, B = U[:, :rank] * S[:rank], V[:rank]
    step = A.abs().max() / 1.5
    A = (A / step).round().clamp(-2, 1) * step
    entries = list(B.flatten().split(group))
    B = torch.cat([(part / (part.abs().max() / 7.5)).round().clamp(-8, 7) * part.abs().max() / 7.5 for part in entries])
    return A @ B.view(rank, -1)


def share(lost: Tensor, product: Tensor, H: Tensor) -> float:
    """The H-weighted error that a correction leaves, over that without one."""
    left = lost - product.double()
    return float(((left @ H) * left).sum() / ((lost @ H) * lost).sum())


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("weighted", [False, True])
def test_a_correction_mends_more_than_the_coded_svd(seed: int, weighted: bool) -> None:
    """What it leaves is less than what the truncated SVD of pg#1797 with its scales leaves, and is near rank's best."""
    lost = low_rank_plus_noise(60, 40, seed=seed)
    H = hessian(40, seed=seed).double() if weighted else torch.eye(40).double()
    found = share(lost, low_rank(lost, H, rank=4, group=64).product(), H)
    assert found < 0.6 * share(lost, truncated_svd(lost, rank=4, group=64), H)
    assert found < 0.06


@pytest.mark.parametrize("seed", range(10))
def test_more_rank_mends_more(seed: int) -> None:
    """Each pair is fitted to what the coded pairs before it left, so none makes it worse."""
    lost, H = low_rank_plus_noise(30, 20, seed=seed, rank=3), hessian(20, seed=seed).double()
    left = [share(lost, low_rank(lost, H, rank=rank, group=20).product(), H) for rank in range(1, 5)]
    assert all(more < less for less, more in zip([1.0, *left], left, strict=False)), left


@given(st.integers(0, 2**31 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(1, 40))
@example(0, 5, 7, 4, 3)
def test_codes_and_scales_are_those_that_a_file_can_hold(
    seed: int, rows: int, columns: int, rank: int, group: int
) -> None:
    """Left codes are from -2 to 1, right ones from -8 to 7, scales positive fp16: one, and one for `group` entries."""
    lost = 10.0 ** (seed % 40 - 25) * low_rank_plus_noise(rows, columns, seed=seed)
    found = low_rank(lost, hessian(columns, seed=seed).double(), rank=rank, group=group)
    assert (found.left.shape, found.right.shape) == ((rows, rank), (rank, columns))
    assert (found.left.dtype, found.right.dtype) == (torch.int8, torch.int8)
    assert -2 <= int(found.left.min()) <= int(found.left.max()) <= 1
    assert -8 <= int(found.right.min()) <= int(found.right.max()) <= 7
    assert (len(found.left_scale), len(found.right_scales)) == (1, -(-rank * columns // group))
    for scales in (found.left_scale, found.right_scales):
        assert scales.dtype == torch.float16
        assert bool(((scales > 0) & scales.isfinite()).all())
    assert bool(found.product().isfinite().all())


@pytest.mark.parametrize("kind", ["nothing lost", "inputs of zeros", "one huge loss", "indefinite"])
def test_degenerate_losses_give_a_finite_correction(kind: str) -> None:
    """No loss, no inputs, one huge entry, an indefinite Hessian: finite numbers, and never a worse matrix."""
    lost, H = low_rank_plus_noise(9, 8, seed=0), hessian(8, seed=0).double()
    if kind == "nothing lost":
        lost *= 0
    elif kind == "inputs of zeros":
        H *= 0
    elif kind == "one huge loss":
        lost[3, 3] = 1e30
    else:
        H = -torch.eye(8).double()
    product = low_rank(lost, H, rank=2, group=5).product().double()
    assert bool(product.isfinite().all())
    if kind != "one huge loss":
        assert float((lost - product).norm()) <= float(lost.norm())


def test_one_pair_is_as_good_as_two_bits_allow() -> None:
    """A Gaussian column in four levels leaves 11.75 % at best (Max 1960); a second pair takes most of that away."""
    lost, H = low_rank_plus_noise(2000, 16, seed=0, rank=1, noise=0.0), torch.eye(16).double()
    one, two = (share(lost, low_rank(lost, H, rank=rank, group=4).product(), H) for rank in (1, 2))
    assert 0.1175 <= one < 0.16
    assert two < 0.03


def quantized(*, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, QuantizedMatrix]]:
    """Four matrices after GPTQ, of unequal size; a, b and c lose more than d."""
    weights, hessians, matrices = {}, {}, {}
    for index, (name, size) in enumerate({"c": 0.02, "a": 0.05, "d": 0.01, "b": 0.05}.items()):
        generator = torch.Generator().manual_seed(seed + index)
        weights[name] = size * torch.randn(24, 16, generator=generator)
        hessians[name] = hessian(16, seed=seed + index)
        scales = row_scales(weights[name], bits=4, k=8.0)
        codes = quantize(weights[name], hessians[name], scales, bits=4, damping=0.01, block=8)
        matrices[name] = QuantizedMatrix(codes, scales, 4)
    return weights, hessians, matrices


@pytest.mark.parametrize("count", [1, 2, 9])
def test_the_matrices_that_lost_most_are_corrected(count: int) -> None:
    """Those with the largest ‖W - Ŵ‖_F, which falls, and so does the H-weighted error; codes stay what they are."""
    for seed in range(5):
        weights, hessians, matrices = quantized(seed=seed)
        found = corrected(weights, hessians, matrices, count=count, rank=2, group=16)
        lost = {n: float((weights[n] - dequantize_matrix(matrices[n])).norm()) for n in matrices}
        assert set(found) == set(sorted(lost, key=lost.__getitem__, reverse=True)[:count])
        for name, matrix in found.items():
            assert matrix.codes is matrices[name].codes
            assert float((weights[name] - dequantize_matrix(matrix)).norm()) < lost[name]
            before, after = (loss(weights[name], m, hessians[name]) for m in (matrices[name], matrix))
            assert after < before


def test_equal_losses_go_by_name_and_calls_repeat() -> None:
    """Which of two equal matrices is corrected follows from the names, and twice the same call is the same codes."""
    weights, hessians, matrices = quantized(seed=0)
    for both in (weights, hessians, matrices):
        both["b"] = both["a"]  # type: ignore[index]
    first, again = (
        corrected(dict(order(weights.items())), hessians, dict(order(matrices.items())), count=1, rank=3, group=16)
        for order in (list, reversed)
    )
    assert list(first) == list(again) == ["a"]
    one, two = first["a"].correction, again["a"].correction
    assert isinstance(one, Correction)
    assert isinstance(two, Correction)
    assert torch.equal(one.left, two.left)
    assert torch.equal(one.product(), two.product())
