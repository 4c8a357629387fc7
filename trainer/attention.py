"""Causal attention with QK normalisation, partial rotary positions, query gains, shared KV heads and XSA.

Data flow of `Attention`: n [B, T, D] → q [B, T, H, d], k and v [B, T, G, d] → RMS per head → rotation of the first
dims → gain on q → softmax attention → exclusive self attention → W_o. The arithmetic is in functions without
parameters, so that each can be held against its formula.

FlashAttention 3 does the softmax attention where it is installed and the tensors are bf16 on a GPU, torch's
scaled_dot_product_attention everywhere else.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.functions import rms
from trainer.settings import Recipe

try:
    from flash_attn_interface import flash_attn_func
except ImportError:
    flash_attn_func = None


def attention_backend(device: str = "cuda") -> str:
    """What computes bf16 attention on that kind of device of this machine: `flash-attn-3` or `sdpa`."""
    found = flash_attn_func is not None and device == "cuda" and torch.cuda.is_available()
    return "flash-attn-3" if found else "sdpa"


def rotary_tables(length: int, *, dims: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position · base^(-2j/dims), j = 0 … dims/2 - 1: fp32 [length, dims/2], angles in float64."""
    frequencies = base ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on the leading dims of each head: with their halves (a, b), (a cos + b sin, b cos - a sin).

    x [B, T, heads, d]; cos and sin [T, r/2] with r ≤ d; the other d - r dims pass. Result in the tables' precision.
    """
    half = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    a, b, rest = torch.split(x, [half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin, rest.to(cos.dtype)), dim=-1)


def exclude_own_value(y: Tensor, v: Tensor) -> Tensor:
    """XSA (arXiv:2603.09078): y - (y·v̂)v̂, v̂ = v/‖v‖ of the position's own value in the head's KV group.

    y [B, T, H, d], v [B, T, G, d], G divides H; query heads h·H/G … (h+1)·H/G - 1 belong to KV head h.
    """
    batch, length, groups, width = v.shape
    grouped, own = y.reshape(batch, length, groups, -1, width), v.unsqueeze(3)
    # As (y·v)v/(v·v), without a normalised copy of v: .8 instead of 1.2 ms at [8, 256, 4, 32] on 2 CPU threads.
    along = (grouped * own).sum(-1, keepdim=True) / own.square().sum(-1, keepdim=True).clamp_min(1e-30)
    return torch.addcmul(grouped, along, own, value=-1).flatten(2, 3)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention with scale 1/√d over positions up to the own. q [B, T, H, d], k and v [B, T, G, d] → as q."""
    if flash_attn_func is not None and q.is_cuda and q.dtype == torch.bfloat16:
        out: Tensor | tuple[Tensor, ...] = flash_attn_func(q, k, v, causal=True)
        return out[0] if isinstance(out, tuple) else out  # older builds also return the log-sum-exp
    # enable_gqa against K and V expanded by hand, [8 and 16, 256, 4 heads/2 KV, 32] fp32 on 2 CPU threads, forward
    # and backward: 12.1 against 13.6 ms, and 21.0 against 25.0 ms.
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=q.shape[2] != k.shape[2]
    )
    return y.transpose(1, 2)


class Linear(nn.Module):
    """x → x Wᵀ without bias. A module of its own so that a forward pre-hook sees what W is multiplied with."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Attention(nn.Module):
    """Attn(n) of one layer; `exclusive` switches XSA on. Parameters are empty until the model fills them."""

    def __init__(self, recipe: Recipe, *, exclusive: bool) -> None:
        super().__init__()
        model = recipe.model
        self.head_width = model.width // model.heads
        self.exclusive = exclusive
        kv_width = model.kv_heads * self.head_width
        self.q = Linear(model.width, model.width)
        self.k = Linear(model.width, kv_width)
        self.v = Linear(model.width, kv_width)
        self.o = Linear(model.width, model.width)
        self.gain = nn.Parameter(torch.empty(model.heads))

    def forward(self, n: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """n [B, T, D] normalised, cos and sin [T, r/2] → [B, T, D]."""
        q, k, v = (self._heads(linear(n)) for linear in (self.q, self.k, self.v))
        q = (rotate(rms(q), cos, sin) * self.gain[:, None]).to(v.dtype)
        k = rotate(rms(k), cos, sin).to(v.dtype)
        y = causal_attention(q, k, v)
        if self.exclusive:
            y = exclude_own_value(y, v)
        out: Tensor = self.o(y.flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_width)
