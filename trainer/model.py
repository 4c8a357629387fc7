"""The GPT: token ids in, one loss in nats per target out (techniques of pg#1394 and its sources).

Data flow: E[id] → RMS → layers in the order of `execution` with U-Net skips between its halves → RMS → tied head →
softcap → cross-entropy. Depth recurrence is only a longer execution list over the same weights.

    gpt = GPT(recipe, seed=42)
    losses = gpt(ids, targets, looped)          # [B, T] fp32, nats
    logits = gpt(ids, None, looped)             # [B, T, V] fp32, after the softcap

Mixed precision is the caller's autocast: matrices are cast where they multiply, vectors, gains and gates stay fp32, and
the residual stream takes autocast's dtype. Without autocast everything is fp32.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.attention import Attention, Linear, rotary_tables
from trainer.functions import leaky_relu_squared, rms, wide
from trainer.settings import Loop, Recipe


def execution(layers: int, loop: Loop, looped: bool) -> tuple[int, ...]:
    """Physical layers in the order they are applied (pg#1204, pg#1394).

    0 … first-1, then first … last 1 + extra_passes times if `looped`, then last+1 … layers-1.
    """
    if not looped or not loop.extra_passes:
        return tuple(range(layers))
    segment = tuple(range(loop.first, loop.last + 1))
    return (*range(loop.first), *segment * (1 + loop.extra_passes), *range(loop.last + 1, layers))


def skip_pairs(applications: int) -> int:
    """Skips of an execution list: the first ⌊n/2⌋ applications push, each later one pops while it can (pg#1218)."""
    return applications // 2


class MLP(nn.Module):
    """W₂ φ(W₁ n) with φ = LeakyReLU² (pg#549)."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        model = recipe.model
        self.slope = model.negative_slope
        self.up = Linear(model.width, model.mlp_ratio * model.width)
        self.down = Linear(model.mlp_ratio * model.width, model.width)

    def forward(self, n: Tensor) -> Tensor:
        out: Tensor = self.down(leaky_relu_squared(self.up(n), self.slope))
        return out


class Block(nn.Module):
    """Layer l: u = m₀⊙x + m₁⊙x⁰; x' = u + s_a⊙Attn(RMS(u)/√(l+1)); x' + s_m⊙MLP(RMS(x')/√(l+1))."""

    def __init__(self, recipe: Recipe, layer: int) -> None:
        super().__init__()
        model = recipe.model
        self.damping = 1 / math.sqrt(layer + 1)
        self.mix_stream = nn.Parameter(torch.empty(model.width))
        self.mix_embedding = nn.Parameter(torch.empty(model.width))
        self.attention_scale = nn.Parameter(torch.empty(model.width))
        self.mlp_scale = nn.Parameter(torch.empty(model.width))
        self.attention = Attention(recipe, exclusive=layer >= model.layers - model.xsa_layers)
        self.mlp = MLP(recipe)

    def forward(self, x: Tensor, x0: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x and x0 [B, T, D] → [B, T, D] of x's dtype; products with the fp32 vectors are rounded once."""
        u = torch.addcmul(self.mix_stream * x, self.mix_embedding, x0).to(x.dtype)
        attended = self.attention(rms(u, self.damping), cos, sin)
        u = torch.addcmul(u, self.attention_scale, attended).to(x.dtype)
        return torch.addcmul(u, self.mlp_scale, self.mlp(rms(u, self.damping))).to(x.dtype)


class Head(nn.Module):
    """h → E h with the embedding's matrix. A module so that a forward pre-hook sees h, the input of E as head."""

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return F.linear(h, embedding)


class GPT(nn.Module):
    """The model of a recipe, initialised from `seed` on the CPU in fp32: the same bits on every rank and device.

    `embedding` is the tied matrix [V, D]. `sites` maps the name of every matrix, and `embedding`, to its input site:
    the path of the submodule whose first argument is multiplied with it (q, k and v share one; `head` for E).
    """

    def __init__(self, recipe: Recipe, *, seed: int) -> None:
        super().__init__()
        model = recipe.model
        self.softcap = model.softcap
        self.orders = {looped: execution(model.layers, recipe.loop, looped) for looped in (False, True)}
        self.rotary_tables = functools.partial(rotary_tables, dims=model.rope_dims, base=model.rope_base)
        pairs = skip_pairs(len(self.orders[True]))
        self.embedding = nn.Parameter(torch.empty(recipe.tokens.vocab_size, model.width))
        self.blocks = nn.ModuleList(Block(recipe, layer) for layer in range(model.layers))
        self.skip_weights = nn.Parameter(torch.empty(pairs, model.width))
        self.skip_gates = nn.Parameter(torch.empty(pairs, model.width))
        self.head = Head()
        self.sites = {name: _site(name) for name in self.matrices()} | {"embedding": "head"}
        cos, sin = self.rotary_tables(recipe.train.sequence_length)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        initialize(self, recipe, seed=seed)

    cos: Tensor
    sin: Tensor

    def matrices(self) -> dict[str, nn.Parameter]:
        """Name → parameter of q, k, v, o, up and down of every block, in the order of `named_parameters`."""
        return {name: value for name, value in self.named_parameters() if name.endswith(".weight")}

    def forward(self, ids: Tensor, targets: Tensor | None, looped: bool) -> Tensor:
        """Loss of every target, fp32 [B, T] in nats, or without targets the logits, fp32 [B, T, V].

        ids and targets int64 [B, T], `looped` with depth recurrence. Every use of the model comes through here.
        """
        logits = self._logits(ids, looped)
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)

    def _logits(self, ids: Tensor, looped: bool) -> Tensor:
        """c·tanh(z/c) of z = E RMS(x), fp32 [B, T, V]; ids int64 [B, T]."""
        z = wide(self.head(rms(self._stream(ids, looped)), self.embedding))
        return self.softcap * torch.tanh(z / self.softcap)

    def _stream(self, ids: Tensor, looped: bool) -> Tensor:
        """The residual stream after the last layer, [B, T, D]."""
        cos, sin = self._tables(ids.shape[1])
        x = x0 = rms(F.embedding(ids, self.embedding)).to(_stream_dtype(self.embedding))
        order = self.orders[looped]
        encoders = skip_pairs(len(order))
        pushed: list[Tensor] = []
        for position, layer in enumerate(order):
            if position >= encoders and pushed:
                x = self._skip(position - encoders, x, pushed.pop())
            x = self.blocks[layer](x, x0, cos, sin)
            if position < encoders:
                pushed.append(x)
        return x

    def _skip(self, pair: int, x: Tensor, h: Tensor) -> Tensor:
        """σ(γ)⊙x + (1 - σ(γ))⊙(w⊙h) before decoder application `pair`."""
        gate = torch.sigmoid(self.skip_gates[pair])
        return torch.addcmul(gate * x, (1 - gate) * self.skip_weights[pair], h).to(x.dtype)

    def _tables(self, length: int) -> tuple[Tensor, Tensor]:
        if length <= self.cos.shape[0]:
            return self.cos[:length], self.sin[:length]
        cos, sin = self.rotary_tables(length)
        return cos.to(self.cos), sin.to(self.sin)


def called(gpt: GPT, *, compiled: bool) -> Callable[..., Tensor]:
    """What to call with (ids, targets, looped): the model, or its compiled form. Announces both as `golf.model`."""
    sys.audit("golf.model", gpt)
    if not compiled:
        return gpt
    form: Callable[..., Tensor] = torch.compile(gpt)
    sys.audit("golf.model", form)
    return form


def initialize(gpt: GPT, recipe: Recipe, *, seed: int) -> None:
    """Fill all parameters from one generator of their own; torch's global generator is left alone.

    | family                                      | shape         | start                                          |
    |---------------------------------------------|---------------|------------------------------------------------|
    | embedding                                   | V × D         | normal, mean 0, standard deviation embed_std   |
    | blocks.*.attention.{q, k, v}, blocks.*.mlp.up | out × in    | orthogonal, gain 1                             |
    | blocks.*.attention.o, blocks.*.mlp.down     | D × in        | 0, so every block starts as the identity       |
    | blocks.*.attention.gain                     | H             | qk_gain                                        |
    | blocks.*.mix_stream, *_scale                | D             | 1                                              |
    | blocks.*.mix_embedding                      | D             | 0                                              |
    | skip_weights                                | pairs × D     | 1                                              |
    | skip_gates                                  | pairs × D     | 0, so a gate starts at ½                       |

    Orthogonal matrices are drawn and factored in float64: rounding to fp32 then hides how a LAPACK orders its sums.
    """
    generator = torch.Generator().manual_seed(seed)
    constants = {"gain": recipe.qk_gain, "mix_embedding": 0.0, "skip_gates": 0.0, "o": 0.0, "down": 0.0}
    with torch.no_grad():
        for name, parameter in gpt.named_parameters():
            family = name.removesuffix(".weight").rpartition(".")[2]
            if family == "embedding":
                parameter.normal_(0.0, recipe.model.embed_std, generator=generator)
            elif family in ("q", "k", "v", "up"):
                drawn = torch.empty(parameter.shape, dtype=torch.float64)
                parameter.copy_(nn.init.orthogonal_(drawn, generator=generator))
            else:
                parameter.fill_(constants.get(family, 1.0))


def _site(name: str) -> str:
    """Input site of a matrix: the path of its Linear, q's for k and v."""
    path, _, module = name.removesuffix(".weight").rpartition(".")
    return f"{path}.{'q' if module in ('q', 'k', 'v') else module}"


def _stream_dtype(parameter: Tensor) -> torch.dtype:
    device = parameter.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parameter.dtype
