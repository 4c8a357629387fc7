"""Small artifacts of all kinds, which mutants begin as: both versions, both codecs, every option.

Each model is written by `pack`; version 1, which nothing writes any more, by `anatomy.assemble`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import brotli
import numpy as np
import torch

from tests.fuzz.anatomy import BROTLI, Anatomy, Stream, assemble, dissect
from tests.trainer.artifacts import FACTS, matrix, scales, small, vector
from trainer import artifact
from trainer.quantized import QuantizedMatrix, QuantizedModel


@dataclasses.dataclass(frozen=True)
class Seed:
    """An artifact, its parts, how often mutants begin with it (slow ones seldom), and its parts assembled again."""

    name: str
    data: bytes
    anatomy: Anatomy
    weight: float
    again: bytes


def vectors() -> QuantizedModel:
    """Vectors of 0 to 8 dimensions, and one that is worth compressing."""
    found = {f"v{n}": vector((2,) * n, seed=n) for n in range(9)}
    return QuantizedModel({}, {**found, "ones": torch.ones(64, dtype=torch.float16)})


def compressible() -> QuantizedModel:
    """Matrices and scales that brotli shortens, so that mutations get behind it."""
    rows, cols = 24, 16
    made = matrix(rows, cols, bits=3, seed=5, protect=(3, 4, 8), correct=(2, 9))
    made.codes[:, 3:7] = torch.arange(4, dtype=torch.int8) * 40 - 60
    made.codes[:, 7:] = torch.arange(cols - 7, dtype=torch.int8) % 3 - 1
    made.scales[:] = 0.5
    return QuantizedModel({"blocks.0.up": made}, {"gain": torch.ones(40, dtype=torch.float16)})


def tall() -> QuantizedModel:
    """An embedding whose columns follow from each other, which the coder of codes predicts."""
    rng = np.random.default_rng(6)
    shared = rng.normal(0, 25, (640, 1)) * np.array([1, 1, -1, 0.5, 1, 1, 0, -1]) + rng.normal(0, 2, (640, 8))
    codes = torch.from_numpy(shared.round().clip(-127, 127).astype(np.int8))
    return QuantizedModel({"embedding": QuantizedMatrix(codes, scales(rng, 640), 8)}, {})


def spiky() -> QuantizedModel:
    """Codes near zero but for a few that a table of their context gives no frequency."""
    codes = torch.zeros(900, 4, dtype=torch.int8)
    codes[::7, 1] = 1
    codes[899] = torch.tensor([127, -127, 0, 90])
    return QuantizedModel({"w": QuantizedMatrix(codes, torch.ones(900, dtype=torch.float16), 8)}, {})


def crowd() -> QuantizedModel:
    """Many tiny tensors of all bits."""
    matrices = {f"blocks.{n}.w": matrix(1 + n % 3, 2, bits=2 + n % 7, seed=n) for n in range(8)}
    return QuantizedModel(matrices, {f"blocks.{n}.gain": vector((n,), seed=n) for n in range(1, 8)})


def wide() -> QuantizedModel:
    """Enough codes for the coder's many lanes, of two bits, most of them zero."""
    rng = np.random.default_rng(7)
    codes = torch.from_numpy(rng.choice([-1, 0, 0, 0, 0, 0, 1], (300, 450)).astype(np.int8))
    return QuantizedModel({"w": QuantizedMatrix(codes, torch.ones(300, dtype=torch.float16), 2)}, {})


def one() -> QuantizedModel:
    """A single code."""
    return QuantizedModel({"w": matrix(1, 1, bits=2, seed=0)}, {})


MODELS: dict[str, tuple[Callable[[], QuantizedModel], dict[str, Any]]] = {
    "small": (small, FACTS),
    "vectors": (vectors, {}),
    "compressible": (compressible, {"seed": 1}),
    "tall": (tall, {"digest": "sha256:" + "0" * 64}),
    "spiky": (spiky, {}),
    "crowd": (crowd, {"list": [[], {}, -1.5, 10**20], "nested": {"ü": {"\n": True}}}),
    "one": (one, {}),
}


@functools.cache
def seeds() -> tuple[Seed, ...]:
    """The corpus. Weights make the mean mutant cheap; all kinds come thousands of times in a million."""
    found = []
    for name, (build, facts) in MODELS.items():
        model = build()
        data = artifact.pack(model, metadata=facts)
        found.append(_seed(f"{name}-brotli", data, 4))
        if not model.matrices:
            continue
        found.append(_seed(f"{name}-ans", artifact.pack(model, metadata=facts, codec="ans"), 1))
        if not any(m.protected or m.correction for m in model.matrices.values()):
            found.append(_seed(f"{name}-version1", early(dissect(data)), 1))
    found.append(_seed("wide-ans", artifact.pack(wide(), metadata={}, codec="ans"), 0.02))
    return tuple(found)


def early(anatomy: Anatomy) -> bytes:
    """Version 1 of a file that has no options: all streams by brotli, none of nothing."""
    packed = [Stream(BROTLI, brotli.compress(plain)) for plain in map(Stream.plain, anatomy.streams) if plain]
    return assemble(dataclasses.replace(anatomy, version=1, streams=packed))


def _seed(name: str, data: bytes, weight: float) -> Seed:
    return Seed(name, data, dissect(data), weight, assemble(dissect(data)))
