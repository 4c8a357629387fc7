"""SDClip and rounding against their formulas, and what must hold for any weights."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given
from torch import Tensor

from tests.trainer.matrices import hessian, weights
from trainer.clipping import round_codes, row_clips, row_scales
from trainer.errors import ArtifactError
from trainer.quantized import dequantize, q_max

BITS = st.integers(2, 8)


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


@given(weights(), BITS, st.floats(0.5, 40), st.sampled_from([0.0, 0.175, 1.0]))
@example(torch.full((2, 3), 3e38), 8, 20.0, 1.0)
@example(torch.full((1, 1), 1e-40), 2, 1.0, 0.5)
@example(torch.zeros(2, 2), 6, 12.85, 1.0)
def test_every_row_decodes_to_finite_weights(weight: Tensor, bits: int, k: float, share: float) -> None:
    """Scales are positive and finite in fp16 whatever the row, and a row of zeros decodes to zeros."""
    clips = row_clips(weight, torch.eye(weight.shape[1]), k=k, share=share)
    scales = row_scales(weight, bits=bits, k=clips)
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


def test_hessian_aware_clips_are_the_formula() -> None:
    """k_i = k·[1 + λ(r_i - 1)], r_i the row's mean of |w_ij|·H_jj over the mean of that over all rows (pg#1412)."""
    weight, H = torch.randn(7, 12, generator=torch.Generator().manual_seed(1)), hessian(12, seed=1)
    diagonal = H.double().numpy().diagonal()
    r = (abs(weight.double().numpy()) * diagonal / diagonal.mean()).mean(axis=1)
    expected = 12.85 * (1 + 0.175 * (r / r.mean() - 1))
    clips = row_clips(weight, H, k=12.85, share=0.175)
    assert np.allclose(clips.numpy(), expected, rtol=1e-12)
    assert len(set(expected.round(3))) > 1, "the control: these rows must differ"


@given(weights(), st.floats(0.5, 40), st.floats(0.0, 1.0))
def test_hessian_aware_clips_keep_their_mean(weight: Tensor, k: float, share: float) -> None:
    """No clip is negative, their mean is k, and without a share every one is k, so the codes are those of SDClip."""
    clips = row_clips(weight, torch.eye(weight.shape[1]), k=k, share=share)
    assert float(clips.min()) >= 0
    assert float(clips.mean()) == pytest.approx(k)
    plain = row_scales(weight, bits=6, k=k)
    assert torch.equal(row_scales(weight, bits=6, k=row_clips(weight, torch.eye(weight.shape[1]), k=k, share=0)), plain)


@given(st.integers(0, 2**31 - 1), BITS, st.floats(4.0, 20), st.floats(1.3, 4))
def test_a_wider_clip_takes_fewer_bytes(seed: int, bits: int, k: float, wider: float) -> None:
    """The order-0 entropy of the codes falls as k rises, for every seed drawn: k is the knob for the size."""
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(seed))

    def entropy(clip: float) -> float:
        codes = round_codes(weight, row_scales(weight, bits=bits, k=clip), bits=bits)
        share = torch.bincount(codes.flatten().long() + 128).double() / codes.numel()
        return float(-(share[share > 0] * share[share > 0].log2()).sum())

    finer, coarser = entropy(k), entropy(k * wider)
    assert coarser < finer or (coarser == finer < 0.01), "with next to all codes 0 there is nothing left to save"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_weights_are_refused_by_name(bad: float) -> None:
    """NaN or infinity in the weights is an error that names the matrix and counts them."""
    weight = torch.ones(3, 4)
    weight[1, 2] = bad
    with pytest.raises(ArtifactError, match=r"weights of blocks\.0\.up: 1 of 12 are NaN or infinite"):
        row_scales(weight, bits=6, k=10.0, name="blocks.0.up")


def test_a_hessian_of_another_width_is_refused_by_name() -> None:
    """Clips that follow a Hessian need one of the matrix's width."""
    with pytest.raises(ArtifactError, match=r"up: Hessian of shape \[3, 3\], expected \[4, 4\]"):
        row_clips(torch.ones(2, 4), torch.eye(3), k=10.0, share=0.175, name="up")
