"""Attention's parts against their formulas in float64, and the whole against the loop one would write by hand."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.toy import toy_recipe
from trainer import attention as subject
from trainer.attention import Attention, attention_backend, causal_attention, exclude_own_value, rotary_tables, rotate


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of one head as a double loop. q, k, v [T, d]."""
    rows = []
    for t in range(len(q)):
        scores = torch.stack([q[t] @ k[s] / math.sqrt(q.shape[1]) for s in range(t + 1)])
        weights = scores.exp() / scores.exp().sum()
        rows.append((weights[:, None] * v[: t + 1]).sum(0))
    return torch.stack(rows)


class TestRotary:
    def test_angles(self) -> None:
        """Pair j of position p turns by p · base^(-2j/dims)."""
        cos, sin = rotary_tables(50, dims=16, base=10_000.0)
        assert cos.shape == sin.shape == (50, 8)
        for position, pair in ((0, 3), (1, 0), (7, 2), (49, 7)):
            angle = position * 10_000.0 ** (-2 * pair / 16)
            assert cos[position, pair].item() == pytest.approx(math.cos(angle), abs=1e-6)
            assert sin[position, pair].item() == pytest.approx(math.sin(angle), abs=1e-6)

    def test_formula(self) -> None:
        """Halves (a, b) of the first dims become (a cos + b sin, -a sin + b cos); the rest passes."""
        x = _normal(1, 5, 2, 12)
        cos, sin = (table.double() for table in rotary_tables(5, dims=8, base=100.0))
        y = rotate(x, cos, sin)
        for t in range(5):
            a, b = x[0, t, :, :4], x[0, t, :, 4:8]
            torch.testing.assert_close(y[0, t, :, :4], a * cos[t] + b * sin[t])
            torch.testing.assert_close(y[0, t, :, 4:8], -a * sin[t] + b * cos[t])
        assert torch.equal(y[..., 8:], x[..., 8:])

    @settings(max_examples=20)
    @given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 20), st.integers(0, 999))
    def test_scores_depend_on_distance_alone(self, query: int, key: int, shift: int, seed: int) -> None:
        """Moving query and key together leaves their product; moving one alone does not."""
        cos, sin = (table.double() for table in rotary_tables(64, dims=8, base=100.0))
        q, k = _normal(8, seed=seed), _normal(8, seed=seed + 1)

        def at(x: Tensor, position: int) -> Tensor:
            return rotate(x.expand(1, 64, 1, 8), cos, sin)[0, position, 0]

        product = at(q, query) @ at(k, key)
        assert (at(q, query + shift) @ at(k, key + shift)).item() == pytest.approx(product.item(), abs=1e-5)
        if shift:
            assert (at(q, query + shift) @ at(k, key)).item() != pytest.approx(product.item(), abs=1e-9)

    def test_whole_head_may_rotate(self) -> None:
        """With as many rotary dims as the head has, nothing is left to pass and lengths stay."""
        x = _normal(1, 6, 1, 8)
        y = rotate(x, *(table.double() for table in rotary_tables(6, dims=8, base=100.0)))
        torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)


class TestExclusion:
    @settings(max_examples=25)
    @given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 999))
    def test_is_its_formula(self, groups: int, per_group: int, seed: int) -> None:
        """Each head loses its part along v̂ of its own KV head, and is orthogonal to v afterwards."""
        y, v = _normal(2, 4, groups * per_group, 5, seed=seed), _normal(2, 4, groups, 5, seed=seed + 1)
        out = exclude_own_value(y, v)
        for head in range(groups * per_group):
            own = v[:, :, head // per_group]
            unit = own / own.norm(dim=-1, keepdim=True)
            oracle = y[:, :, head] - (y[:, :, head] * unit).sum(-1, keepdim=True) * unit
            torch.testing.assert_close(out[:, :, head], oracle)
            assert (out[:, :, head] * own).sum(-1).abs().max() < 1e-12

    def test_zero_value(self) -> None:
        """A value of zero has no direction to remove: y passes and gradients stay finite."""
        y, v = torch.ones(1, 1, 2, 4, requires_grad=True), torch.zeros(1, 1, 1, 4, requires_grad=True)
        out = exclude_own_value(y, v)
        out.sum().backward()
        assert torch.equal(out, y)
        assert y.grad is not None
        assert v.grad is not None
        assert y.grad.isfinite().all()
        assert v.grad.isfinite().all()

    def test_gradient(self) -> None:
        """Gradients of y and v equal finite differences."""
        y, v = _normal(1, 2, 4, 3).requires_grad_(), _normal(1, 2, 2, 3, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(exclude_own_value, (y, v))


class TestAttention:
    @pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
    def test_softmax_attention(self, heads: int, kv_heads: int) -> None:
        """Every query head attends with its KV head, causally, with scale 1/√d."""
        q = _normal(1, 6, heads, 4)
        k, v = _normal(1, 6, kv_heads, 4, seed=1), _normal(1, 6, kv_heads, 4, seed=2)
        y = causal_attention(q, k, v)
        for head in range(heads):
            kv = head // (heads // kv_heads)
            torch.testing.assert_close(y[0, :, head], _attend(q[0, :, head], k[0, :, kv], v[0, :, kv]))

    @pytest.mark.parametrize("exclusive", [False, True])
    def test_whole_layer(self, exclusive: bool) -> None:
        """The layer is W_q, W_k, W_v, RMS per head, rotation, gain, attention, XSA, W_o, in this order."""
        recipe = toy_recipe(model__heads=4, model__kv_heads=2)
        layer = Attention(recipe, exclusive=exclusive).double()
        with torch.no_grad():
            for seed, parameter in enumerate(layer.parameters()):
                parameter.copy_(_normal(*parameter.shape, seed=seed))
        n = _normal(1, 7, 32, seed=99)
        cos, sin = (table.double() for table in rotary_tables(7, dims=4, base=10_000.0))

        def unit(x: Tensor) -> Tensor:
            return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float64).eps).sqrt()

        columns = []
        for head in range(4):
            rows, kv_rows = slice(8 * head, 8 * head + 8), slice(8 * (head // 2), 8 * (head // 2) + 8)
            q, k = n[0] @ layer.q.weight[rows].T, n[0] @ layer.k.weight[kv_rows].T
            v = n[0] @ layer.v.weight[kv_rows].T
            q, k = (rotate(unit(x)[None, :, None], cos, sin)[0, :, 0] for x in (q, k))
            y = _attend(layer.gain[head] * q, k, v)
            if exclusive:
                y = y - (y * v).sum(-1, keepdim=True) * v / v.square().sum(-1, keepdim=True)
            columns.append(y)
        torch.testing.assert_close(layer(n, cos, sin)[0], torch.cat(columns, -1) @ layer.o.weight.T)

    def test_backend_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """FlashAttention 3 is reported where it is installed, there is a GPU and it is asked for; else sdpa."""
        monkeypatch.setattr(subject, "flash_attn_func", lambda *_, **__: None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert attention_backend("cuda") == "flash-attn-3"
        assert attention_backend("cpu") == "sdpa"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert attention_backend("cuda") == "sdpa"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(subject, "flash_attn_func", None)
        assert attention_backend("cuda") == "sdpa"
