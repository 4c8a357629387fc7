"""Protected columns: the score against its formula, which groups win, and what they gain."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given

from tests.trainer.matrices import SITES, UP, E, K, Q, hessian, loss, model, parts
from trainer import artifact
from trainer.clipping import row_scales
from trainer.errors import ArtifactError
from trainer.protection import group_scores, groups, most_salient, protect
from trainer.quantized import QuantizedModel
from trainer.quantizer import quantize_model
from trainer.settings import Gptq


@given(st.integers(1, 300), st.integers(1, 80))
@example(32, 31)
@example(3, 4)
def test_no_group_is_short(columns: int, width: int) -> None:
    """Groups are all columns in order, of `width` each but the last, which takes in what is left; never all in one."""
    found = groups(columns, width=width)
    covered = columns if columns >= 2 * width else min(width, columns)
    assert [j for group in found for j in group] == list(range(covered))
    assert [len(group) for group in found[:-1]] == [width] * (len(found) - 1)
    assert min(width, columns) <= len(found[-1]) < 2 * width
    assert len(found[0]) < columns or columns <= width


@pytest.mark.parametrize(("columns", "ends"), [(12, [4, 8, 12]), (14, [4, 8, 14]), (15, [4, 8, 15]), (3, [3])])
def test_scores_are_the_formula(columns: int, ends: list[int]) -> None:
    """Σ_j √(E x_j²)·mean_i |w_ij| over the columns of a group, up to the number of tokens; the last may be longer."""
    weight, H = torch.randn(5, columns, generator=torch.Generator().manual_seed(2)), hessian(columns, seed=2)
    expected = [
        sum(float(H[j, j]) ** 0.5 * float(weight[:, j].abs().mean()) for j in range(start, end))
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    assert group_scores(weight, H, width=4).tolist() == pytest.approx(expected)


def test_the_best_group_of_each_of_the_best_matrices_is_taken() -> None:
    """At most one group a matrix, best matrices first, none for a count of 0, all for a large one."""
    weights = {name: torch.ones(2, 6) for name in "abc"}
    hessians = {name: torch.eye(6) for name in "abc"}
    hessians["a"][3, 3] = 100
    hessians["a"][5, 5] = 81
    hessians["b"][4, 4] = 64
    assert most_salient(weights, hessians, width=2, count=0) == {}
    assert most_salient(weights, hessians, width=2, count=1) == {"a": range(2, 4)}
    assert most_salient(weights, hessians, width=2, count=2) == {"a": range(2, 4), "b": range(4, 6)}
    assert most_salient(weights, hessians, width=2, count=9) == {
        "a": range(2, 4),
        "b": range(4, 6),
        "c": range(2),
    }
    assert most_salient(weights, hessians, width=4, count=1) == {"a": range(4)}


def test_equal_scores_go_by_name() -> None:
    """Among equals the earlier name and the earlier columns win, whatever the order of the dict."""
    weights = {name: torch.ones(2, 6) for name in "cab"}
    hessians = dict.fromkeys("cab", torch.eye(6))
    assert most_salient(weights, hessians, width=3, count=1) == {"a": range(3)}


def test_a_hessian_of_another_width_is_refused_by_name() -> None:
    """A Hessian that does not fit its matrix is one line."""
    with pytest.raises(ArtifactError, match=r"up: Hessian of shape \[3, 3\], expected \[4, 4\]"):
        most_salient({"up": torch.ones(2, 4)}, {"up": torch.eye(3)}, width=2, count=1)


def protected(seed: int, **more: int) -> tuple[QuantizedModel, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    state, hessians = model(seed=seed, scale=2)
    settings = Gptq(matrix_bits=4, matrix_k=8.0, protect_width=8, **more)
    return quantize_model(state, hessians, SITES, settings), state, hessians


def test_protected_columns_have_bits_and_scales_of_their_own() -> None:
    """Scales are those of `protect`, codes use the bits; matrices that are as fine already get none."""
    quantized, state, hessians = protected(3, protect_groups=9)
    own = {name: hessians[SITES[name]] for name in (Q, K, UP)}
    chosen = most_salient({name: state[name] for name in own}, own, width=8, count=9)
    assert quantized.matrices[E].protected is None
    for name, columns in chosen.items():
        found = quantized.matrices[name].protected
        assert found is not None
        assert (range(found.start, found.start + found.width), found.bits) == (columns, 8)
        assert torch.equal(found.scales, protect(state[name], columns, bits=8, k=8.0).scales)
        assert int(quantized.matrices[name].codes[:, columns.start : columns.stop].abs().max()) > 7
    assert sum(m.protected is not None for m in protected(3, protect_groups=2)[0].matrices.values()) == 2


def test_protection_lowers_the_error_of_the_matrix() -> None:
    """On 20 draws the H-weighted error of every protected matrix falls: GPTQ sees the finer columns."""
    for seed in range(20):
        quantized, state, hessians = protected(10 * seed, protect_groups=2)
        plain = protected(10 * seed)[0]
        for name in (n for n, matrix in quantized.matrices.items() if matrix.protected):
            before, after = (loss(state[name], m.matrices[name], hessians[SITES[name]]) for m in (plain, quantized))
            assert after < before, (seed, name)


@pytest.mark.parametrize("columns", [range(3, 4), range(8, 16), range(32)])
def test_scales_are_sdclips_and_not_finer_than_the_rows(columns: range) -> None:
    """Row by row the larger of two: that of those columns, and that of all of them, by the clips of the rows."""
    weight = torch.randn(12, 32, generator=torch.Generator().manual_seed(4))
    weight[:6, 8:16] *= 5
    k = torch.linspace(5, 9, 12).double()
    found = protect(weight, columns, bits=7, k=k)
    inside, whole = (row_scales(w, bits=7, k=k) for w in (weight[:, columns.start : columns.stop], weight))
    assert torch.equal(found.scales, torch.where(inside > whole, inside, whole))
    assert (found.start, found.width, found.bits) == (columns.start, len(columns), 7)
    assert bool((inside < whole).any()) or columns == range(32), "the control: some rows must need the whole one's"
    assert bool((inside > whole).any()) or columns != range(8, 16), "the control: and some their own"


@pytest.mark.parametrize("width", [1, 2, 3, 8, 16, 24, 31, 32])
@pytest.mark.parametrize("bits", [4, 6])
def test_no_width_costs_a_matrix_more_than_it_gains(width: int, bits: int) -> None:
    """On 10 draws, with an input that is 20 times as large: at most a hundredth more error than without protection.

    One column, or a last group of one, deviates from its own mean by nothing: by that alone its step would be 2^-24.
    """
    for seed in range(10):
        weight = 0.05 * torch.randn(24, 32, generator=torch.Generator().manual_seed(seed))
        H = hessian(32, seed=seed)
        big = 31 if seed % 2 else 7
        H[big] *= 20
        H[:, big] *= 20
        errors = []
        for count in (0, 1):
            settings = Gptq(matrix_bits=bits, protect_groups=count, protect_width=width)
            found = quantize_model({UP: weight}, {"in": H}, {UP: "in"}, settings).matrices[UP]
            assert (found.protected is not None) == bool(count)
            errors.append(loss(weight, found, H))
        assert errors[1] <= 1.01 * errors[0], (seed, errors)


@pytest.mark.parametrize("codec", ["brotli", "ans"])
def test_a_matrix_whose_columns_are_nearly_all_protected_is_written(codec: str) -> None:
    """31 of 32 columns are a group of 31: a file can hold what is protected beside something that isn't."""
    weight = 0.05 * torch.randn(24, 32, generator=torch.Generator().manual_seed(0))
    settings = Gptq(protect_groups=1, protect_width=31)
    quantized = quantize_model({UP: weight}, {"in": hessian(32, seed=0)}, {UP: "in"}, settings)
    read, _ = artifact.unpack(artifact.pack(quantized, metadata={}, codec=codec))
    assert all(torch.equal(a, b) for a, b in zip(parts(read), parts(quantized), strict=True))
    own = quantized.matrices[UP].protected
    assert own is not None
    assert (own.start, own.width) == (0, 31)
