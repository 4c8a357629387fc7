"""The hand-written backward passes against finite differences, the values against their formulas."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given

from trainer.functions import leaky_relu_squared, rms


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestRMS:
    @given(st.integers(0, 10_000), st.floats(0.1, 2.0), st.floats(1e-3, 1e3))
    def test_is_its_formula(self, seed: int, scale: float, size: float) -> None:
        """Rows come out as scale · x / √(mean x² + ε), whatever their size."""
        x = (_normal(3, 8, seed=seed) * size).float()
        mean = x.double().square().mean(-1, keepdim=True)
        oracle = scale * x.double() / (mean + torch.finfo(torch.float32).eps).sqrt()
        torch.testing.assert_close(rms(x, scale).double(), oracle, rtol=1e-6, atol=1e-7)

    def test_bf16_is_normalised_in_fp32(self) -> None:
        """A bf16 input loses only the rounding of the result: ε is that of fp32, not the 0.0078 of bf16."""
        x = (_normal(4, 64) * 0.01).bfloat16()
        expected = rms(x.float()).bfloat16()
        assert rms(x).dtype == torch.bfloat16
        assert torch.equal(rms(x), expected)

    @pytest.mark.parametrize("scale", [1.0, 0.3])
    def test_gradient(self, scale: float) -> None:
        """The backward pass equals finite differences, scaled or not."""
        assert torch.autograd.gradcheck(lambda x: rms(x, scale), (_normal(2, 3, 6).requires_grad_(),))


class TestLeakyReLUSquared:
    @given(st.floats(-50, 50), st.floats(0, 1))
    @example(-2.0, 0.5)
    def test_is_its_formula(self, z: float, slope: float) -> None:
        """φ(z) = max(z, slope·z)²."""
        value = leaky_relu_squared(torch.tensor(z, dtype=torch.float64), slope)
        assert value.item() == pytest.approx(max(z, slope * z) ** 2, rel=1e-12)

    def test_gradient(self) -> None:
        """The backward pass equals finite differences on both sides of zero."""
        z = _normal(5, 7).requires_grad_()
        assert (z > 0).any()
        assert (z < 0).any()
        assert torch.autograd.gradcheck(lambda x: leaky_relu_squared(x, 0.5), (z,))
