"""SDClip and GPTQ against their formulas, a slow oracle and what must hold for any weights."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given
from torch import Tensor

from trainer import gptq
from trainer.clipping import round_codes, row_scales
from trainer.errors import ArtifactError
from trainer.quantized import dequantize, dequantize_model, q_max
from trainer.quantizer import quantize_model
from trainer.settings import Gptq

BITS = st.integers(2, 8)


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Small matrices of any fp32 scale, with rows of zeros, constants and outliers among them."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 24))
    seed = draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).standard_t(3, (rows, columns)) * 10.0 ** draw(st.integers(-12, 8))
    kinds = draw(st.lists(st.sampled_from(["drawn", "zero", "constant", "outlier"]), min_size=rows, max_size=rows))
    for row, kind in zip(values, kinds, strict=True):
        if kind == "zero":
            row[:] = 0
        elif kind == "constant":
            row[:] = row[0]
        elif kind == "outlier":
            row[-1] *= 1e4
    return torch.from_numpy(values.astype(np.float32))


def inputs(columns: int, *, seed: int, samples: int = 0, correlated: bool = True) -> Tensor:
    """Inputs X [samples, columns] with correlated columns of unequal size, as a network's are."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(samples or 4 * columns, columns, generator=generator)
    if correlated:
        X = X @ torch.randn(columns, columns, generator=generator) / columns**0.5
    return X * torch.exp(0.5 * torch.randn(columns, generator=generator))


def problem(rows: int, columns: int, *, seed: int, bits: int = 6, k: float = 12.85) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, Hessian and scales."""
    X = inputs(columns, seed=seed)
    weight = 0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed + 1))
    return weight, X.T @ X, row_scales(weight, bits=bits, k=k)


def error(weight: Tensor, codes: Tensor, scales: Tensor, hessian: Tensor) -> float:
    """tr((W-Ŵ) H (W-Ŵ)ᵀ) in float64: the squared error of the layer's output on the calibration inputs."""
    lost = weight.double() - dequantize(codes, scales).double()
    return float(((lost @ hessian.double()) * lost).sum())


def upper_factor_of_inverse(hessian: Tensor) -> Tensor:
    """U with H⁻¹ = UᵀU by Cholesky, inverse, Cholesky, as the paper has it."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


def oracle(weight: Tensor, hessian: Tensor, scales: Tensor, *, bits: int, damping: float) -> Tensor:
    """GPTQ column by column in float64, no blocks."""
    W, H, limit = weight.double().clone(), hessian.double().clone(), 2 ** (bits - 1) - 1
    for j in range(len(H)):
        if H[j, j] == 0:
            H[j, j] = 1
            W[:, j] = 0
    H += damping * H.diagonal().mean() * torch.eye(len(H), dtype=torch.float64)
    order = sorted(range(len(H)), key=lambda j: -float(H[j, j]))
    W, U = W[:, order], upper_factor_of_inverse(H[order][:, order])
    codes = torch.zeros(weight.shape, dtype=torch.int8)
    for j, column in enumerate(order):
        code = (W[:, j] / scales.double()).round().clamp(-limit, limit)
        lost = (W[:, j] - scales.double() * code) / U[j, j]
        W -= lost[:, None] * torch.where(torch.arange(len(H)) > j, U[j], 0)
        codes[:, column] = code.to(torch.int8)
    return codes


def surgeon(weight: Tensor, hessian: Tensor, scales: Tensor, *, bits: int) -> Tensor:
    """The same from first principles (optimal brain surgeon): re-invert the Hessian of what is left at every column."""
    W, limit = weight.double().clone(), 2 ** (bits - 1) - 1
    codes = torch.zeros(weight.shape, dtype=torch.int8)
    left = sorted(range(weight.shape[1]), key=lambda j: -float(hessian[j, j]))
    while left:
        inverse = torch.linalg.inv(hessian.double()[left][:, left])
        column = left[0]
        code = (W[:, column] / scales.double()).round().clamp(-limit, limit)
        lost = (W[:, column] - scales.double() * code) / inverse[0, 0]
        W[:, left] -= torch.outer(lost, inverse[0])
        codes[:, column] = code.to(torch.int8)
        left = left[1:]
    return codes


@given(weights(), BITS, st.floats(0.5, 40))
def test_rounding_is_at_most_half_a_step_off_inside_the_clip(weight: Tensor, bits: int, k: float) -> None:
    """Every weight within scale · q_max decodes to within half a scale of itself, the others to the clip."""
    scales = row_scales(weight, bits=bits, k=k)
    decoded = dequantize(round_codes(weight, scales, bits=bits), scales).double()
    step, exact = scales.double()[:, None], weight.double()
    clip = step * q_max(bits)
    inside = exact.abs() <= clip
    # fp32's division may put a weight that lies half-way on the other side.
    assert bool(((decoded - exact).abs() <= step * (0.5 + 1e-5))[inside].all())
    assert bool((decoded == clip * exact.sign())[~inside].all())


@given(weights(), BITS, st.floats(0.5, 40))
def test_rounding_a_decoded_matrix_gives_its_codes_again(weight: Tensor, bits: int, k: float) -> None:
    """round_codes is the inverse of dequantize on everything that dequantize can give."""
    scales = row_scales(weight, bits=bits, k=k)
    codes = round_codes(weight, scales, bits=bits)
    assert codes.dtype == torch.int8
    assert torch.equal(round_codes(dequantize(codes, scales), scales, bits=bits), codes)


@given(weights(), BITS, st.floats(0.5, 40))
@example(torch.full((2, 3), 3e38), 8, 20.0)
@example(torch.full((1, 1), 1e-40), 2, 1.0)
def test_every_row_decodes_to_finite_weights(weight: Tensor, bits: int, k: float) -> None:
    """Scales are positive and finite in fp16 whatever the row, and a row of zeros decodes to zeros."""
    scales = row_scales(weight, bits=bits, k=k)
    assert scales.dtype == torch.float16
    assert bool((scales > 0).all())
    assert bool(scales.isfinite().all())
    decoded = dequantize(round_codes(weight, scales, bits=bits), scales)
    assert bool(decoded.isfinite().all())
    assert bool((decoded[(weight == 0).all(dim=1)] == 0).all())


def test_scales_are_the_formula() -> None:
    """s_i = fp16(k·std(w_i)/q_max), with the standard deviation of the row."""
    weight = torch.randn(5, 512, generator=torch.Generator().manual_seed(0))
    expected = np.float16(12.85 * weight.double().numpy().std(axis=1) / 31)
    assert row_scales(weight, bits=6, k=12.85).numpy().tolist() == expected.tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_numbers_are_refused_by_name(bad: float) -> None:
    """NaN or infinity in weights or Hessian is an error that names the matrix and counts them."""
    weight, hessian, scales = problem(3, 4, seed=0)
    spoiled = weight.clone()
    spoiled[1, 2] = bad
    with pytest.raises(ArtifactError, match=r"weights of blocks\.0\.up: 1 of 12 are NaN or infinite"):
        row_scales(spoiled, bits=6, k=10.0, name="blocks.0.up")
    with pytest.raises(ArtifactError, match=r"weights of up: 1 of 12"):
        gptq.quantize(spoiled, hessian, scales, bits=6, damping=0.01, block=2, name="up")
    hessian[0, 1] = bad
    with pytest.raises(ArtifactError, match=r"Hessian of up: 1 of 16"):
        gptq.quantize(weight, hessian, scales, bits=6, damping=0.01, block=2, name="up")


@pytest.mark.parametrize("size", [1, 2, 17, 96])
def test_the_cheap_factor_is_the_factor(size: int) -> None:
    """Reverse Cholesky gives the same upper triangular U as Cholesky, inverse, Cholesky, to 1e-10 in float64."""
    X = inputs(size, seed=size).double()
    H = X.T @ X + 0.01 * torch.eye(size, dtype=torch.float64)
    U = gptq.inverse_factor(H)
    assert torch.equal(U, U.triu())
    assert torch.allclose(U, upper_factor_of_inverse(H), rtol=1e-10, atol=1e-10 * float(U.abs().max()))
    assert torch.allclose(U.T @ U @ H, torch.eye(size, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize(("rows", "columns", "bits", "block"), [(40, 60, 6, 16), (24, 130, 4, 128), (16, 64, 8, 1)])
@pytest.mark.parametrize("dead", [0, 5])
def test_codes_are_the_oracles(rows: int, columns: int, bits: int, block: int, dead: int) -> None:
    """Blocks, fp32 and the cheap factor change at most 1 % of the codes of a column-by-column float64 GPTQ."""
    weight, hessian, _ = problem(rows, columns, seed=rows + dead)
    unseen = torch.randperm(columns, generator=torch.Generator().manual_seed(9))[:dead]
    hessian[unseen] = 0
    hessian[:, unseen] = 0
    scales = row_scales(weight, bits=bits, k=6.0)
    codes = gptq.quantize(weight, hessian, scales, bits=bits, damping=0.01, block=block)
    expected = oracle(weight, hessian, scales, bits=bits, damping=0.01)
    assert codes.dtype == torch.int8
    assert float((codes == expected).float().mean()) >= 0.99
    assert not codes[:, unseen].any()


def test_codes_are_those_of_the_optimal_brain_surgeon() -> None:
    """The triangular factor stands for inverting the Hessian of the remaining columns again and again."""
    weight, hessian, scales = problem(32, 24, seed=3, bits=4, k=5.0)
    codes = gptq.quantize(weight, hessian, scales, bits=4, damping=0.0, block=8)
    assert float((codes == surgeon(weight, hessian, scales, bits=4)).float().mean()) >= 0.99


@pytest.mark.parametrize(("bits", "k"), [(6, 12.85), (4, 6.0), (8, 20.0)])
def test_the_error_on_calibration_inputs_is_below_plain_rounding(bits: int, k: float) -> None:
    """Over 20 draws GPTQ leaves less than 60 % of rounding's H-weighted error, and not once more than all of it."""
    shares = []
    for seed in range(20):
        weight, hessian, scales = problem(32, 64, seed=100 + seed, bits=bits, k=k)
        found = gptq.quantize(weight, hessian, scales, bits=bits, damping=0.01, block=32)
        rounded = round_codes(weight, scales, bits=bits)
        shares.append(error(weight, found, scales, hessian) / error(weight, rounded, scales, hessian))
    assert sum(shares) / len(shares) < 0.6
    assert sum(share > 1 for share in shares) == 0


@given(st.integers(0, 2**32 - 1), BITS, st.integers(1, 40))
def test_uncorrelated_inputs_leave_plain_rounding(seed: int, bits: int, block: int) -> None:
    """With a diagonal Hessian there is nobody to push an error to: the codes are those of rounding."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 20, generator=generator)
    hessian = torch.diag(torch.rand(20, generator=generator) + 0.1)
    scales = row_scales(weight, bits=bits, k=4.0)
    codes = gptq.quantize(weight, hessian, scales, bits=bits, damping=0.01, block=block)
    assert torch.equal(codes, round_codes(weight, scales, bits=bits))


@given(st.integers(0, 2**32 - 1), BITS)
def test_codes_stay_within_their_bits(seed: int, bits: int) -> None:
    """However large the error that is pushed on, no code leaves ±q_max."""
    weight, hessian, scales = problem(4, 24, seed=seed % 2**31, bits=bits, k=1.0)
    codes = gptq.quantize(weight, hessian, scales, bits=bits, damping=0.01, block=8)
    assert int(codes.int().abs().max()) <= q_max(bits)


def test_the_order_of_the_columns_does_not_matter() -> None:
    """Permuting inputs permutes the codes: the loop runs by descending diagonal and undoes its order."""
    weight, hessian, scales = problem(24, 50, seed=5)
    shuffle = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    codes = gptq.quantize(weight, hessian, scales, bits=6, damping=0.01, block=16)
    shuffled = gptq.quantize(weight[:, shuffle], hessian[shuffle][:, shuffle], scales, bits=6, damping=0.01, block=16)
    assert float((shuffled == codes[:, shuffle]).float().mean()) >= 0.99
    rounded = round_codes(weight, scales, bits=6)
    assert float((codes == rounded).float().mean()) < 0.9, "the control: this problem must be one that GPTQ changes"


def test_quantize_leaves_its_arguments_alone_and_repeats() -> None:
    """Two calls on the same tensors give the same codes and change nothing."""
    weight, hessian, scales = problem(16, 40, seed=6)
    hessian[3] = 0
    hessian[:, 3] = 0
    kept = [tensor.clone() for tensor in (weight, hessian, scales)]
    first = gptq.quantize(weight, hessian, scales, bits=6, damping=0.01, block=16)
    assert torch.equal(first, gptq.quantize(weight, hessian, scales, bits=6, damping=0.01, block=16))
    assert all(torch.equal(a, b) for a, b in zip(kept, (weight, hessian, scales), strict=True))


def test_too_few_samples_are_met_with_damping() -> None:
    """A Hessian of lower rank, and one that is a little indefinite, still give codes close to the weights."""
    X = inputs(40, seed=7, samples=10)
    weight = torch.randn(8, 40, generator=torch.Generator().manual_seed(7))
    scales = row_scales(weight, bits=8, k=5.0)
    for hessian in (X.T @ X, X.T @ X - 0.02 * (X.T @ X).diagonal().mean() * torch.eye(40)):
        codes = gptq.quantize(weight, hessian, scales, bits=8, damping=0.0, block=16)
        assert error(weight, codes, scales, X.T @ X) <= error(
            weight, round_codes(weight, scales, bits=8), scales, X.T @ X
        )


def test_inputs_that_are_always_zero_give_zeros() -> None:
    """A site that saw nothing but zeros has a Hessian of zeros; its matrix is quantized to zeros, not refused."""
    weight, _, scales = problem(3, 4, seed=10)
    assert not gptq.quantize(weight, torch.zeros(4, 4), scales, bits=6, damping=0.01, block=2).any()


def test_damping_rises_tenfold_from_what_was_asked() -> None:
    """A Hessian that needs 5 % of its mean diagonal gives the codes of damping 0.1 when 0.001 is asked for."""
    X = inputs(60, seed=12, samples=20)
    hessian = X.T @ X
    hessian -= 0.05 * hessian.diagonal().mean() * torch.eye(60)
    weight = torch.randn(200, 60, generator=torch.Generator().manual_seed(12))
    scales = row_scales(weight, bits=8, k=5.0)
    found, near, exact = (
        gptq.quantize(weight, hessian, scales, bits=8, damping=damping, block=16) for damping in (0.001, 0.111, 0.1)
    )
    assert torch.equal(found, exact)
    assert not torch.equal(near, exact), "the control: these codes must show a damping that is a little off"


def test_an_indefinite_hessian_is_an_error_that_names_the_matrix() -> None:
    """What no damping up to MAX_DAMPING makes positive definite is refused."""
    weight, _, scales = problem(3, 2, seed=8)
    with pytest.raises(ArtifactError, match=r"Hessian of head is not positive definite, even with 1 of its mean"):
        gptq.quantize(
            weight, torch.tensor([[1.0, 9.0], [9.0, 1.0]]), scales, bits=6, damping=0.01, block=2, name="head"
        )


@pytest.mark.parametrize("columns", [3, 5])
def test_shapes_that_do_not_fit_are_refused(columns: int) -> None:
    """A Hessian of another width than the matrix is an error with both shapes."""
    weight, _, scales = problem(3, 4, seed=9)
    with pytest.raises(ArtifactError, match=rf"q: Hessian of shape \[{columns}, {columns}\].*\[3, 4\]"):
        gptq.quantize(weight, torch.eye(columns), scales, bits=6, damping=0.01, block=2, name="q")
    with pytest.raises(ArtifactError, match=r"scales of \[2\], expected \[4, 4\] and \[3\]"):
        gptq.quantize(weight, torch.eye(4), scales[:2], bits=6, damping=0.01, block=2, name="q")


SITES = {"up": "up", "q": "q", "k": "q", "embedding": "head"}


def model() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A state dict with matrices, vectors and a scalar; the Hessians of its sites."""
    generator = torch.Generator().manual_seed(11)
    state = {"gain": torch.randn(4, generator=generator), "scale": torch.tensor(0.25)}
    for name, (rows, columns) in {"q": (8, 16), "k": (4, 16), "up": (12, 16), "embedding": (40, 10)}.items():
        state[name] = 0.02 * torch.randn(rows, columns, generator=generator)
    hessians = {}
    for seed, (site, columns) in enumerate({"q": 16, "up": 16, "head": 10}.items()):
        X = inputs(columns, seed=seed)
        hessians[site] = X.T @ X
    return state, hessians


def test_a_model_is_quantized_matrix_by_matrix() -> None:
    """Each matrix gets its bits, clip and site's Hessian, the embedding its own; everything else is fp16."""
    state, hessians = model()
    settings = Gptq(matrix_bits=5, matrix_k=7.0, embed_bits=7, embed_k=9.0, damping=0.02, block=4)
    quantized = quantize_model(state, hessians, SITES, settings)
    assert set(quantized.matrices) == set(SITES)
    assert set(quantized.vectors) == {"gain", "scale"}
    for name, matrix in quantized.matrices.items():
        bits, k = (7, 9.0) if name == "embedding" else (5, 7.0)
        scales = row_scales(state[name], bits=bits, k=k)
        codes = gptq.quantize(state[name], hessians[SITES[name]], scales, bits=bits, damping=0.02, block=4)
        assert matrix.bits == bits
        assert torch.equal(matrix.scales, scales)
        assert torch.equal(matrix.codes, codes)
    assert all(torch.equal(vector, state[name].half()) for name, vector in quantized.vectors.items())


def test_a_model_decodes_to_the_state_it_was_made_from() -> None:
    """dequantize_model gives every name and shape back in fp32, off by the quantization alone."""
    state, hessians = model()
    decoded = dequantize_model(quantize_model(state, hessians, SITES, Gptq(matrix_bits=8, matrix_k=5.0)))
    assert {name: tensor.shape for name, tensor in decoded.items()} == {n: t.shape for n, t in state.items()}
    for name, tensor in decoded.items():
        assert tensor.dtype == torch.float32
        assert float((tensor - state[name]).abs().max()) < 0.2 * float(state[name].abs().max())


def test_nothing_depends_on_the_order_of_the_names() -> None:
    """A state dict in another order gives the same codes."""
    state, hessians = model()
    first = quantize_model(state, hessians, SITES, Gptq())
    again = quantize_model(dict(reversed(state.items())), hessians, dict(reversed(SITES.items())), Gptq())
    assert list(first.matrices) == list(again.matrices)
    assert all(torch.equal(first.matrices[n].codes, again.matrices[n].codes) for n in SITES)


def test_what_is_missing_is_named() -> None:
    """No matrices, a matrix or Hessian that is absent, and a vector too large for fp16 are errors."""
    state, hessians = model()
    with pytest.raises(ArtifactError, match="the model names no matrices"):
        quantize_model(state, hessians, {}, Gptq())
    with pytest.raises(ArtifactError, match="no weights or Hessian of down, missing"):
        quantize_model(state, hessians, SITES | {"down": "missing"}, Gptq())
    with pytest.raises(ArtifactError, match="fp16 values of gain: 1 of 4"):
        quantize_model(state | {"gain": torch.tensor([1.0, 2.0, 1e5, 3.0])}, hessians, SITES, Gptq())
