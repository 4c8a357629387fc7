"""Newton–Schulz by what it does to singular values, Muon against the formula matrix by matrix."""

from __future__ import annotations

import copy
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from trainer.muon import COEFFICIENTS, Muon, equilibrate, newton_schulz


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))
NAMES = st.sampled_from(sorted(COEFFICIENTS))


def _schulz(N: Tensor, steps: int, name: str) -> Tensor:
    """One matrix through its singular values: each becomes the composed odd polynomials of σ/(‖N‖_F + 1e-7)."""
    U, S, Vh = torch.linalg.svd(N, full_matrices=False)
    s = S / (S.square().sum().sqrt() + 1e-7)
    for step in range(steps):
        a, b, c = COEFFICIENTS[name][min(step, len(COEFFICIENTS[name]) - 1)]
        s = a * s + b * s**3 + c * s**5
    return U @ torch.diag(s) @ Vh


class TestNewtonSchulz:
    @given(SHAPES, st.integers(1, 7), NAMES, st.integers(0, 999))
    def test_acts_on_singular_values(self, shape: tuple[int, int], steps: int, name: str, seed: int) -> None:
        """Singular vectors stay, each singular value goes through the polynomials; tall, wide and square."""
        N = _normal(*shape, seed=seed)
        out = newton_schulz(N, steps=steps, coefficients=name)
        torch.testing.assert_close(out, _schulz(N, steps, name), rtol=1e-6, atol=1e-8)

    @settings(max_examples=25)
    @given(st.sampled_from(["fixed", "polar"]), st.integers(4, 10), st.booleans(), st.integers(0, 999))
    def test_five_steps_orthogonalise(self, name: str, small: int, tall: bool, seed: int) -> None:
        """Of a matrix four times as long as wide five steps bring all singular values into a band around 1."""
        N = _normal(4 * small, small, seed=seed) if tall else _normal(small, 4 * small, seed=seed)
        out = newton_schulz(N, steps=5, coefficients=name)
        singular = torch.linalg.svdvals(out)
        low, high = {"fixed": (0.65, 1.25), "polar": (0.85, 1.15)}[name]
        assert singular.min() > low
        assert singular.max() < high
        U, _, Vh = torch.linalg.svd(N, full_matrices=False)
        polar = U @ Vh
        assert (out * polar).sum() / (out.norm() * polar.norm()) > 0.97

    def test_batch_is_matrix_by_matrix(self) -> None:
        """Matrices of a batch do not see each other, and a matrix of zeros stays zero."""
        N = _normal(2, 3, 6, 4)
        N[1, 1] = 0
        out = newton_schulz(N, steps=5, coefficients="fixed")
        assert out.shape == N.shape
        assert not out[1, 1].any()
        for i in range(2):
            for j in range(3):
                torch.testing.assert_close(out[i, j], newton_schulz(N[i, j], steps=5, coefficients="fixed"))

    def test_size_does_not_matter(self) -> None:
        """Newton–Schulz sees directions, not lengths."""
        N = _normal(5, 7)
        one, many = (newton_schulz(size * N, steps=5, coefficients="polar") for size in (1.0, 1e4))
        torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-6)


class TestEquilibrate:
    @given(SHAPES, st.floats(1e-3, 1e3), st.integers(0, 999))
    def test_rows_have_unit_length(self, shape: tuple[int, int], size: float, seed: int) -> None:
        """Every row has length 1 and its direction; rows below 1e-7 stay short."""
        N = size * _normal(*shape, seed=seed)
        N[0] *= 1e-15 / size
        out = equilibrate(N)
        torch.testing.assert_close(out[1:].norm(dim=-1), torch.ones(shape[0] - 1, dtype=torch.float64))
        torch.testing.assert_close(out[0], N[0] * 1e7)
        assert ((out * N).sum(-1) >= 0).all()


class TestMuon:
    @pytest.mark.parametrize("name", ["fixed", "polar"])
    @pytest.mark.parametrize("rows", [False, True])
    def test_is_its_formula(self, name: str, rows: bool) -> None:
        """Three steps over matrices of four shapes equal the formula, written for one matrix after the other."""
        shapes = [(4, 4), (8, 4), (4, 4), (3, 9), (8, 4), (2, 5)]
        weights = [nn.Parameter(_normal(*shape, seed=i)) for i, shape in enumerate(shapes)]
        expected = [weight.detach().clone() for weight in weights]
        buffers = [torch.zeros_like(weight) for weight in expected]
        muon = Muon(weights, lr=0.1, momentum=0.9, weight_decay=0.3, coefficients=name, equilibrate_rows=rows)
        for step in range(3):
            rate, mu = 0.1 / (step + 1), 0.85 + 0.05 * step
            muon.param_groups[0] |= {"lr": rate, "momentum": mu}
            for i, (weight, shape) in enumerate(zip(weights, shapes, strict=True)):
                G = _normal(*shape, seed=100 * step + i)
                weight.grad = G.clone()
                buffers[i] = mu * buffers[i] + G
                N = G + mu * buffers[i]
                if rows:
                    N = torch.stack([row / max(row.norm().item(), 1e-7) for row in N])
                O = _schulz(N, 5, name)  # noqa: E741 - the formula's letter
                ratio = math.sqrt(max(1, shape[0] / shape[1]))
                expected[i] = (1 - rate * 0.3) * expected[i] - rate * ratio * O
            muon.step()
        for weight, oracle in zip(weights, expected, strict=True):
            torch.testing.assert_close(weight.detach(), oracle, rtol=1e-6, atol=1e-7)

    def test_banks(self) -> None:
        """Equal shapes share a bank, and the largest bank comes first."""
        shapes = [(4, 4), (8, 4), (4, 4), (8, 4), (2, 4)]
        muon = Muon([nn.Parameter(torch.zeros(shape)) for shape in shapes], lr=1.0, momentum=0.0, weight_decay=0.0)
        assert [(bank.name, len(bank.parameters)) for bank in muon.banks] == [("8x4", 2), ("4x4", 2), ("2x4", 1)]

    def test_state_dict_goes_on(self) -> None:
        """torch's own state_dict of a Muon is complete: a second one that loads it takes the same step to the bit."""

        def make(value: Tensor) -> tuple[nn.Parameter, Muon]:
            weight = nn.Parameter(value.clone())
            return weight, Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.0)

        weight, muon = make(_normal(4, 6))
        weight.grad = _normal(4, 6, seed=1)
        muon.step()
        other, second = make(weight.detach())
        second.load_state_dict(copy.deepcopy(muon.state_dict()))
        weight.grad, other.grad = _normal(4, 6, seed=2), _normal(4, 6, seed=2)
        muon.step()
        second.step()
        assert torch.equal(weight, other)

    def test_a_missing_gradient_is_refused(self) -> None:
        """A matrix without a gradient is an error, not a matrix that silently stands still."""
        weights = [nn.Parameter(_normal(2, 2)) for _ in range(2)]
        weights[0].grad = torch.ones_like(weights[0])
        with pytest.raises(ValueError, match="1 of 2 matrices"):
            Muon(weights, lr=0.1, momentum=0.9, weight_decay=0.0).step()

    def test_closures_are_refused(self) -> None:
        """Muon evaluates nothing."""
        muon = Muon([nn.Parameter(torch.zeros(2, 2))], lr=0.1, momentum=0.9, weight_decay=0.0)
        with pytest.raises(ValueError, match="closure"):
            muon.step(lambda: 0.0)
