"""Material of the full shape without training: 66 matrices, the embedding, vectors, and Hessians of their inputs.

    state, hessians, sites = material(seed=0)                   # what `trainer.quantizer.quantize_model` takes
    model = rounded(state, sites, Gptq())                       # a QuantizedModel in two seconds, codes by rounding

Weights are Gaussian rows, or as trained matrices are: heavy tails and columns of unequal spread, both of which move
what an entropy coder gains. SDClip's step is a share of a row's spread, so sizes of weights do not matter.
Inputs have a spectrum that falls as 1/i, columns of unequal size, and behind the MLP's activation a mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.clipping import round_codes, row_scales
from trainer.quantized import QuantizedMatrix, QuantizedModel
from trainer.settings import Gptq

LAYERS, WIDTH, HIDDEN, VOCABULARY, HEADS = 11, 512, 2048, 8192, 8
SKIPS = 7
"""Rows of skip weights and gates; with them a state has the 35,943,512 numbers of the real model."""
SAMPLES = 4096
"""Inputs behind each Hessian: twice as many as the widest matrix has columns."""
SPREAD, COLUMN_SPREAD = 0.5, 0.3
"""Log-normal deviations of the sizes of the inputs, and of the weights' columns where `tails` is set."""
ROLES = {
    "attention.q": (WIDTH, WIDTH, "attention.q"),
    "attention.k": (WIDTH // 2, WIDTH, "attention.q"),
    "attention.v": (WIDTH // 2, WIDTH, "attention.q"),
    "attention.o": (WIDTH, WIDTH, "attention.o"),
    "mlp.up": (HIDDEN, WIDTH, "mlp.up"),
    "mlp.down": (WIDTH, HIDDEN, "mlp.down"),
}
"""Matrix of a block → rows, columns, and the input site that it shares."""


class Material(NamedTuple):
    """Weights by name, Hessian by site, and name → site, as `trainer.stages.read_trained` gives them."""

    state: dict[str, Tensor]
    hessians: dict[str, Tensor]
    sites: dict[str, str]


def material(*, seed: int = 0, tails: bool = False, layers: int = LAYERS) -> Material:
    """The full shape (or fewer `layers` of it), fp32 on the CPU; `tails`: t₈ entries and log-normal columns."""
    weights, sites = state(seed=seed, tails=tails, layers=layers)
    return Material(weights, hessians(seed=seed, layers=layers), sites)


def state(*, seed: int = 0, tails: bool = False, layers: int = LAYERS) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights and vectors by name, and the input site of every matrix: all that a coder needs."""
    random = np.random.default_rng((seed, 0))
    made, sites = {}, {}
    for layer in range(layers):
        for role, (rows, columns, site) in ROLES.items():
            name = f"blocks.{layer}.{role}.weight"
            made[name], sites[name] = _weight(random, rows, columns, tails=tails), f"blocks.{layer}.{site}"
        for vector in ("mix_stream", "mix_embedding", "attention_scale", "mlp_scale"):
            made[f"blocks.{layer}.{vector}"] = _vector(random, WIDTH)
        made[f"blocks.{layer}.attention.gain"] = _vector(random, HEADS)
    made |= {name: _vector(random, SKIPS, WIDTH) for name in ("skip_weights", "skip_gates")}
    made["embedding"], sites["embedding"] = _weight(random, VOCABULARY, WIDTH, tails=tails), "head"
    return made, sites


def hessians(*, seed: int = 0, layers: int = LAYERS) -> dict[str, Tensor]:
    """XᵀX of every input site."""
    random = np.random.default_rng((seed, 1))
    mixing = torch.linalg.qr(_normal(random, WIDTH, WIDTH))[0]
    expand = _normal(random, WIDTH, HIDDEN) / WIDTH**0.5
    made = {}
    for layer in range(layers):
        for site in ("attention.q", "attention.o", "mlp.up"):
            X = _inputs(random, mixing)
            made[f"blocks.{layer}.{site}"] = X.T @ X
        X = F.leaky_relu(X @ expand[:, torch.from_numpy(random.permutation(HIDDEN))], 0.5).square()
        made[f"blocks.{layer}.mlp.down"] = X.T @ X
    X = _inputs(random, mixing)
    return made | {"head": X.T @ X}


def rounded(state: Mapping[str, Tensor], sites: Mapping[str, str], settings: Gptq) -> QuantizedModel:
    """Plain rounding of every matrix with its bits and clip: codes that are distributed like GPTQ's, without GPTQ."""
    matrices = {}
    for name in sorted(sites):
        embedding = name == "embedding"
        bits = settings.embed_bits if embedding else settings.matrix_bits
        k = settings.embed_k if embedding else settings.matrix_k
        scales = row_scales(state[name], bits=bits, k=k, name=name)
        matrices[name] = QuantizedMatrix(round_codes(state[name], scales, bits=bits), scales, bits)
    return QuantizedModel(matrices, {name: state[name].half() for name in sorted(set(state) - set(sites))})


def _normal(random: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(random.standard_normal(shape, dtype=np.float32))


def _weight(random: np.random.Generator, rows: int, columns: int, *, tails: bool) -> Tensor:
    weight = _normal(random, rows, columns).mul_(0.02)
    if tails:
        # Student's t with 8 degrees of freedom: normal / √(χ²₈ / 8), and χ²₈ = 2·Γ(4).
        gamma = torch.from_numpy(random.standard_gamma(4.0, (rows, columns), dtype=np.float32))
        weight.mul_(gamma.div_(4.0).rsqrt_()).mul_(torch.exp(COLUMN_SPREAD * _normal(random, columns)))
    return weight


def _vector(random: np.random.Generator, *shape: int) -> Tensor:
    return 1.0 + 0.1 * _normal(random, *shape)


def _inputs(random: np.random.Generator, mixing: Tensor) -> Tensor:
    """X [SAMPLES, WIDTH] of covariance D Qᵀ diag(1/i) Q D, where Q is `mixing` with its columns in another order."""
    spectrum = torch.arange(1, WIDTH + 1).rsqrt()
    Q = mixing[:, torch.from_numpy(random.permutation(WIDTH))]
    return (_normal(random, SAMPLES, WIDTH) * spectrum) @ Q * torch.exp(SPREAD * _normal(random, WIDTH))
