"""Matrices, inputs and small models for the tests of the quantizer."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import torch
from torch import Tensor

from trainer.quantized import QuantizedMatrix, QuantizedModel, dequantize_matrix

SITES = {
    "blocks.0.attention.q.weight": "blocks.0.attention.q",
    "blocks.0.attention.k.weight": "blocks.0.attention.q",
    "blocks.0.mlp.up.weight": "blocks.0.mlp.up",
    "embedding": "head",
}
Q, K, UP, E = SITES
SHAPES = {Q: (16, 16), K: (8, 16), UP: (24, 16), E: (60, 12)}


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


def hessian(columns: int, *, seed: int) -> Tensor:
    """XᵀX of correlated inputs of unequal size, as a network's are."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(4 * columns, columns, generator=generator)
    X = X @ torch.randn(columns, columns, generator=generator) / columns**0.5
    X *= torch.exp(0.5 * torch.randn(columns, generator=generator))
    return X.T @ X


def model(*, seed: int = 0, scale: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State and Hessians of two vectors and the matrices of SITES, `scale` times as wide and high as SHAPES."""
    generator = torch.Generator().manual_seed(seed)
    state = {"gain": torch.randn(4, generator=generator), "scale": torch.tensor(0.25)}
    state |= {
        name: 0.02 * torch.randn(scale * rows, scale * columns, generator=generator)
        for name, (rows, columns) in SHAPES.items()
    }
    widths = {site: state[name].shape[1] for name, site in SITES.items()}
    return state, {site: hessian(width, seed=seed + i) for i, (site, width) in enumerate(widths.items())}


def loss(weight: Tensor, matrix: QuantizedMatrix, hessian: Tensor) -> float:
    """tr((W-Ŵ) H (W-Ŵ)ᵀ) in float64: the squared error of the layer's output on the calibration inputs."""
    lost = weight.double() - dequantize_matrix(matrix).double()
    return float(((lost @ hessian.double()) * lost).sum())


def parts(quantized: QuantizedModel) -> list[Tensor]:
    """Every tensor that a model consists of, in an order that follows from the names."""
    found = [quantized.vectors[name] for name in sorted(quantized.vectors)]
    for name in sorted(quantized.matrices):
        matrix = quantized.matrices[name]
        found += [matrix.codes, matrix.scales]
        if (own := matrix.protected) is not None:
            found += [torch.tensor([own.start, own.width, own.bits]), own.scales]
        if (mended := matrix.correction) is not None:
            found += [mended.left, mended.left_scale, mended.right, mended.right_scales]
    return found
