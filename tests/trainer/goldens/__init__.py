"""Artifacts kept as bytes, and the models that they hold: what was written once stays readable.

    python -m tests.trainer.goldens         writes those of the present version anew; a change is a change of the format

`version1.golf` is by the last code that wrote version 1, so nothing makes it anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.quantized import Correction, Protected, QuantizedMatrix, QuantizedModel

FOLDER = Path(__file__).parent
FACTS: dict[str, Any] = {"seed": 42, "nested": {"b": [1, 2.5, None], "a": "ä"}}
CODECS = {"version2-brotli.golf": "brotli", "version2-ans.golf": "ans"}


def halves(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float16)


def codes(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int8)


def early() -> QuantizedModel:
    """What version 1 can hold: matrices of 2, 6 and 8 bits, vectors of no, one and two dimensions."""
    return QuantizedModel(
        {
            "embedding": QuantizedMatrix(codes([127, -127, 0], [1, -1, 5]), halves(0.5, 2**-24), 8),
            "blocks.0.up": QuantizedMatrix(codes([31, -31], [0, 7], [-8, 1]), halves(0.25, 65504.0, 0.001), 6),
            "blocks.0.down": QuantizedMatrix(codes([1, 0, -1, 1]), halves(1.0), 2),
        },
        {
            "gain": halves(1.5, -0.0, 65504.0),
            "λ": torch.tensor(-0.125, dtype=torch.float16),
            "mix": halves(1.0, 2.0, 3.0, -4.0).reshape(2, 2),
        },
    )


def late() -> QuantizedModel:
    """With protected columns and corrections as well, and a matrix that is worth compressing."""
    early_ = early()
    striped = codes(*([column % 5 - 2, *[0] * 15] for column in range(64)))
    return QuantizedModel(
        {
            **early_.matrices,
            "blocks.1.up": QuantizedMatrix(
                codes([1, 100, -100, 1], [0, -127, 127, -1]),
                halves(0.5, 0.75),
                2,
                protected=Protected(1, 2, 8, halves(0.01, 0.02)),
                correction=Correction(
                    codes([-2, 1], [0, -1]), halves(0.5), codes([-8, 7, 0, 1], [2, 3, 4, 5]), halves(1, 2, 3), 3
                ),
            ),
            "blocks.2.up": QuantizedMatrix(striped, halves(*[0.5] * 64), 3),
        },
        early_.vectors,
    )
