"""Models for artifacts to hold, and a writer of artifacts that knows docs/artifact.md alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct
from typing import Any

import brotli
import hypothesis.strategies as st
import numpy as np
import torch
from torch import Tensor

from trainer import ans
from trainer.quantized import Correction, Protected, QuantizedMatrix, QuantizedModel, q_max

FACTS = {"seed": 42, "recipe": "sha256:00", "nested": {"b": [1, 2.5, None], "a": "ä"}}
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
).filter(lambda value: "\\ud" not in json.dumps(value))


def codes(rng: np.random.Generator, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
    """Codes over the whole range, its ends included."""
    return torch.from_numpy(rng.integers(low, high + 1, shape).astype(np.int8))


def scales(rng: np.random.Generator, count: int) -> Tensor:
    """Scales over the whole range of positive fp16."""
    return torch.from_numpy(rng.integers(1, 0x7C00, count).astype(np.uint16).view(np.float16))


def vector(shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Any finite fp16, subnormal and negative zero included."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 0x7C00, shape).astype(np.uint16) | rng.choice([0, 0x8000], shape).astype(np.uint16)
    return torch.from_numpy(np.asarray(words, np.uint16).view(np.float16))


def matrix(
    rows: int,
    cols: int,
    *,
    bits: int,
    seed: int,
    protect: tuple[int, int, int] | None = None,
    correct: tuple[int, int] | None = None,
) -> QuantizedMatrix:
    """A matrix; `protect`: start, width and bits of its protected columns; `correct`: rank and group."""
    rng = np.random.default_rng(seed)
    made = QuantizedMatrix(codes(rng, -q_max(bits), q_max(bits), (rows, cols)), scales(rng, rows), bits)
    if protect:
        start, width, own_bits = protect
        own = Protected(start, width, own_bits, scales(rng, rows))
        made.codes[:, start : start + width] = codes(rng, -q_max(own_bits), q_max(own_bits), (rows, width))
        made = dataclasses.replace(made, protected=own)
    if correct:
        rank, group = correct
        left, right = codes(rng, -2, 1, (rows, rank)), codes(rng, -8, 7, (rank, cols))
        groups = math.ceil(rank * cols / group)
        made = dataclasses.replace(made, correction=Correction(left, scales(rng, 1), right, scales(rng, groups), group))
    return made


@st.composite
def models(draw: st.DrawFn) -> QuantizedModel:
    """Models of up to four tensors under any names, at least one, with any of the options."""
    names = draw(st.lists(NAMES, unique=True, min_size=1, max_size=4))
    bits, seed = st.integers(2, 8), st.integers(0, 2**32 - 1)
    matrices: dict[str, QuantizedMatrix] = {}
    vectors: dict[str, Tensor] = {}
    for name in names:
        if draw(st.booleans()):
            rows, cols = draw(st.integers(1, 9)), draw(st.integers(1, 9))
            protect = correct = None
            if cols > 1 and draw(st.booleans()):
                start = draw(st.integers(0, cols - 1))
                width = draw(st.integers(1, min(cols - 1, cols - start)))
                protect = (start, width, draw(bits))
            if draw(st.booleans()):
                correct = (draw(st.integers(1, min(rows, cols))), draw(st.integers(1, 80) | st.just(65535)))
            matrices[name] = matrix(rows, cols, bits=draw(bits), seed=draw(seed), protect=protect, correct=correct)
        else:
            vectors[name] = vector(tuple(draw(st.lists(st.integers(1, 5), max_size=3))), seed=draw(seed))
    return QuantizedModel(matrices, vectors)


def small() -> QuantizedModel:
    """One of everything, in an order that is not that of the names."""
    return QuantizedModel(
        {
            "w": matrix(3, 4, bits=6, seed=0),
            "embedding": matrix(5, 2, bits=8, seed=1),
            "up": matrix(4, 5, bits=4, seed=4, protect=(1, 2, 8), correct=(2, 4)),
        },
        {"gain": vector((3,), seed=2), "λ": vector((), seed=3)},
    )


def bits_of(quantized: QuantizedModel) -> dict[str, Any]:
    """Everything that a model consists of, as comparable values."""
    return {name: _bits(value) for name, value in [*quantized.matrices.items(), *quantized.vectors.items()]}


def _bits(value: Any) -> Any:
    if isinstance(value, Tensor):
        whole = value.view(torch.int16) if value.dtype == torch.float16 else value
        return value.dtype, value.shape, value.is_contiguous(), whole.tolist()
    if dataclasses.is_dataclass(value):
        return {field.name: _bits(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


# From here on docs/artifact.md in another hand: lists and struct, nothing of the package but the coder of codes.


def numbers(*tensors: Tensor) -> bytes:
    """The low bytes of all fp16 numbers, then the high bytes."""
    plain = b"".join(struct.pack("<e", number) for tensor in tensors for number in tensor.flatten().tolist())
    return plain[::2] + plain[1::2]


def planes(m: QuantizedMatrix) -> list[tuple[list[list[int]], int, int]]:
    """Rows of the codes of each plane, and the range of its codes."""
    rows, limit = m.codes.tolist(), 2 ** (m.bits - 1) - 1
    if m.protected is None:
        found = [(rows, -limit, limit)]
    else:
        start, end, own = m.protected.start, m.protected.start + m.protected.width, 2 ** (m.protected.bits - 1) - 1
        found = [
            ([row[:start] + row[end:] for row in rows], -limit, limit),
            ([row[start:end] for row in rows], -own, own),
        ]
    if m.correction is not None:
        found += [(m.correction.left.tolist(), -2, 1), (m.correction.right.tolist(), -8, 7)]
    return found


def row(name: bytes, kind: int, shape: tuple[int, ...], extras: bytes = b"") -> bytes:
    """A row of the table; `extras` are a matrix's flags and what they announce."""
    return bytes([len(name)]) + name + bytes([kind, len(shape)]) + struct.pack(f"<{len(shape)}I", *shape) + extras


def extras(m: QuantizedMatrix) -> bytes:
    """A matrix's flags and what they announce."""
    flags = bytes([(m.protected is not None) + 2 * (m.correction is not None)])
    if m.protected is not None:
        flags += struct.pack("<IIB", m.protected.start, m.protected.width, m.protected.bits)
    if m.correction is not None:
        flags += struct.pack("<IH", len(m.correction.right), m.correction.group)
    return flags


def stored(plain: bytes) -> tuple[int, bytes]:
    """Codec and bytes of a stream."""
    packed = brotli.compress(plain, quality=11, lgwin=24)
    return (1, packed) if len(packed) < len(plain) else (0, plain)


def seal(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def table(*rows: bytes, facts: bytes = b"{}", count: int | None = None) -> bytes:
    """A header up to the directory of the streams."""
    fixed = struct.pack("<I", len(facts)) + facts + struct.pack("<I", len(rows) if count is None else count)
    return fixed + b"".join(rows)


def craft(header: bytes, *streams: tuple[int, bytes], promised: int | None = None) -> bytes:
    """A file with a right digest around any header up to the directory, and any streams."""
    header += b"".join(struct.pack("<BI", codec, len(data)) for codec, data in streams)
    packed = stored(header)[1]
    prefix = struct.pack("<4sIII", b"GOLF", 2, len(packed), len(header) if promised is None else promised)
    return seal(prefix + packed + b"".join(data for _, data in streams))


def craft_1(header: bytes, *streams: bytes) -> bytes:
    """The same of version 1, where a row of a matrix has no extras and every stream is brotli."""
    packed = brotli.compress(header + struct.pack(f"<{len(streams)}I", *map(len, streams)))
    size = len(header) + 4 * len(streams)
    return seal(struct.pack("<4sIII", b"GOLF", 1, len(packed), size) + packed + b"".join(streams))


def document(quantized: QuantizedModel, facts: bytes, codec: str) -> bytes:
    """The whole file of a model."""
    rows, coded, scaled, values = [], [], [], []
    for name in sorted({**quantized.matrices, **quantized.vectors}, key=str.encode):
        if name in quantized.vectors:
            values.append(quantized.vectors[name])
            rows.append(row(name.encode(), 0, tuple(values[-1].shape)))
            continue
        m = quantized.matrices[name]
        rows.append(row(name.encode(), m.bits, tuple(m.codes.shape), extras(m)))
        coded += planes(m)
        scaled.append(m.scales)
        scaled += [m.protected.scales] if m.protected else []
        scaled += [m.correction.left_scale, m.correction.right_scales] if m.correction else []
    if codec == "ans" and coded:
        shapes = [ans.Plane(len(lines), len(lines[0]), low, high) for lines, low, high in coded]
        streams = [(2, ans.encode([np.array(lines, np.int8) for lines, _, _ in coded], shapes))]
    else:
        streams = [
            stored(bytes(code % 256 for line in zip(*lines, strict=True) for code in line)) for lines, _, _ in coded
        ]
    return craft(table(*rows, facts=facts), *streams, stored(numbers(*scaled)), stored(numbers(*values)))
