"""Protected columns: the score against its formula, which groups win, and what they gain."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.matrices import SITES, UP, E, K, Q, hessian, loss, model
from trainer.clipping import row_scales
from trainer.errors import ArtifactError
from trainer.protection import group_scores, most_salient
from trainer.quantized import QuantizedModel
from trainer.quantizer import quantize_model
from trainer.settings import Gptq


@pytest.mark.parametrize(("columns", "width"), [(12, 4), (14, 4), (3, 4)])
def test_scores_are_the_formula(columns: int, width: int) -> None:
    """Σ_j √(E x_j²)·mean_i |w_ij| over the columns of a group, up to the number of tokens; the last may be short."""
    weight, H = torch.randn(5, columns, generator=torch.Generator().manual_seed(2)), hessian(columns, seed=2)
    expected = [
        sum(float(H[j, j]) ** 0.5 * float(weight[:, j].abs().mean()) for j in range(start, min(start + width, columns)))
        for start in range(0, columns, width)
    ]
    assert group_scores(weight, H, width=width).tolist() == pytest.approx(expected)


def test_the_best_group_of_each_of_the_best_matrices_is_taken() -> None:
    """At most one group a matrix, best matrices first, none for a count of 0, all for a large one."""
    weights = {name: torch.ones(2, 6) for name in "abc"}
    hessians = {name: torch.eye(6) for name in "abc"}
    hessians["a"][3, 3] = 100
    hessians["a"][5, 5] = 81
    hessians["b"][4, 4] = 64
    assert most_salient(weights, hessians, width=2, count=0) == {}
    assert most_salient(weights, hessians, width=2, count=1) == {"a": 2}
    assert most_salient(weights, hessians, width=2, count=2) == {"a": 2, "b": 4}
    assert most_salient(weights, hessians, width=2, count=9) == {"a": 2, "b": 4, "c": 0}


def test_equal_scores_go_by_name() -> None:
    """Among equals the earlier name and the earlier columns win, whatever the order of the dict."""
    weights = {name: torch.ones(2, 6) for name in "cab"}
    hessians = dict.fromkeys("cab", torch.eye(6))
    assert most_salient(weights, hessians, width=3, count=1) == {"a": 0}


def test_a_hessian_of_another_width_is_refused_by_name() -> None:
    """A Hessian that does not fit its matrix is one line."""
    with pytest.raises(ArtifactError, match=r"up: Hessian of shape \[3, 3\], expected \[4, 4\]"):
        most_salient({"up": torch.ones(2, 4)}, {"up": torch.eye(3)}, width=2, count=1)


def protected(seed: int, **more: int) -> tuple[QuantizedModel, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    state, hessians = model(seed=seed, scale=2)
    settings = Gptq(matrix_bits=4, matrix_k=8.0, protect_width=8, **more)
    return quantize_model(state, hessians, SITES, settings), state, hessians


def test_protected_columns_have_bits_and_scales_of_their_own() -> None:
    """Scales are SDClip's of those columns alone, codes use the bits; matrices that are as fine already get none."""
    quantized, state, hessians = protected(3, protect_groups=9)
    own = {name: hessians[SITES[name]] for name in (Q, K, UP)}
    starts = most_salient({name: state[name] for name in own}, own, width=8, count=9)
    assert quantized.matrices[E].protected is None
    for name, start in starts.items():
        found = quantized.matrices[name].protected
        assert found is not None
        assert (found.start, found.width, found.bits) == (start, 8, 8)
        columns = slice(start, start + 8)
        assert torch.equal(found.scales, row_scales(state[name][:, columns], bits=8, k=8.0))
        assert int(quantized.matrices[name].codes[:, columns].abs().max()) > 7
    assert sum(m.protected is not None for m in protected(3, protect_groups=2)[0].matrices.values()) == 2


def test_protection_lowers_the_error_of_the_matrix() -> None:
    """On 20 draws the H-weighted error of every protected matrix falls: GPTQ sees the finer columns."""
    for seed in range(20):
        quantized, state, hessians = protected(10 * seed, protect_groups=2)
        plain = protected(10 * seed)[0]
        for name in (n for n, matrix in quantized.matrices.items() if matrix.protected):
            before, after = (loss(state[name], m.matrices[name], hessians[SITES[name]]) for m in (plain, quantized))
            assert after < before, (seed, name)
