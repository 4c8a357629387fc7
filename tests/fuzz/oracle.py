"""What a reader may answer to a mutant. Everything else is a Finding.

1. ArtifactError with one printable line of 1 to 499 characters, or a model and metadata.
2. Only the former if the digest is not that of the bytes.
3. What it accepts is as docs/artifact.md has it: names, shapes, bits, codes within their bounds, numbers finite, scales
   positive, metadata canonical. Checked here against the parts that `anatomy` finds, not by the reader's own checks.
4. What it accepts, packed again, has the same essence (`anatomy`): so it was read as it stood, all bytes stood for
   something, and there is no second way to write it but the ones in `SPELLINGS`.
5. Packed again it is read as the same model, and its weights are finite.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.fuzz.anatomy import ANS, BROTLI, Anatomy, AnatomyError, Row, dissect
from trainer import artifact
from trainer.errors import ArtifactError
from trainer.quantized import QuantizedMatrix, QuantizedModel, dequantize_matrix

Reader = Callable[[bytes], tuple[QuantizedModel, dict[str, Any]]]

LONGEST = 499
"""Characters of a message."""
LARGE = 1 << 22
"""Codes of a matrix whose weights are not looked at: they would take the memory that the reader is watched for."""
REFUSED, ACCEPTED = "refused", "accepted"
SPELLINGS = {
    "version": "the same content as version 1 and as 2",
    "brotli": "the same content by other bytes of brotli, or not compressed although it would be shorter",
    "prediction": "the same codes with and without prediction, or predicted otherwise",
}
"""Second forms of one content that the format leaves open, and docs/artifact.md names."""


class Finding(Exception):  # noqa: N818 - no error of who raises it
    """The reader did what it must not. `kind` and `signature` are those of all mutants that show the same."""

    def __init__(self, kind: str, signature: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {signature}{': ' if detail else ''}{detail}")
        self.kind, self.signature = kind, signature


def judge(data: bytes, *, resealed: bool, origin: bytes | None = None, reader: Reader | None = None) -> str:
    """REFUSED, ACCEPTED, or the SPELLINGS by which `data` has the content of `origin`. Raises Finding."""
    try:
        model, metadata = (reader or artifact.unpack)(data)
    except ArtifactError as error:
        _check_message(str(error))
        return REFUSED
    except Exception as error:
        raise Finding("crash", f"{type(error).__name__} at {_place(error)}", str(error)[:200]) from error
    if not resealed:
        raise Finding("silent", "accepted with a digest of other bytes")
    try:
        anatomy = dissect(data)
    except AnatomyError as error:
        raise Finding("malformed", "accepted, although by the docs it can't be", str(error)) from error
    check_content(anatomy, model, metadata)
    return _check_again(anatomy, model, metadata) or _spelling(anatomy, origin) or ACCEPTED


def _check_message(message: str) -> None:
    if not message.isprintable():
        raise Finding("message", "not one printable line", ascii(message)[:200])
    if not 1 <= len(message) <= LONGEST:
        raise Finding("message", f"not 1 to {LONGEST} characters", f"{len(message)}: {message[:100]}")


def _place(error: BaseException) -> str:
    """The innermost frame of the trainer."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent.name == "trainer"]
    return f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "no frame of the trainer"


def check_content(anatomy: Anatomy, model: QuantizedModel, metadata: dict[str, Any]) -> None:
    """Raises Finding if what was read is not what may stand in a file, or not what the table says."""
    text = json.dumps(metadata, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    _expect(type(metadata) is dict and text.encode() == anatomy.facts, "metadata not canonical")
    for stream, plain in zip(anatomy.streams, anatomy.plain(), strict=True):
        most = len(plain) - 1 if anatomy.version == 2 else len(plain) + len(plain) // 1000 + 64
        _expect(stream.codec != BROTLI or len(stream.data) <= most, "brotli that is longer than it may be")
    names = [row.name for row in anatomy.rows]
    _expect(bool(names) and all(a < b for a, b in itertools.pairwise(names)), "names not ascending")
    _expect({name.decode() for name in names} == {*model.matrices, *model.vectors}, "names not those of the table")
    _expect(len(names) == len(model.matrices) + len(model.vectors), "a name twice")
    for row in anatomy.rows:
        name = row.name.decode()
        if row.kind:
            _check_matrix(row, model.matrices[name])
        else:
            _expect(len(row.shape) <= 8, "too many dimensions")
            _check_numbers(model.vectors[name], row.shape, positive=False)


def _check_matrix(row: Row, matrix: QuantizedMatrix) -> None:
    _expect(2 <= row.kind <= 8 and matrix.bits == row.kind and row.flags <= 3, "bits or flags")
    (rows, cols), own, mend = row.shape, matrix.protected, matrix.correction
    planes, inside = iter(row.planes()), np.zeros(cols, bool)
    _expect((bool(own), bool(mend)) == (bool(row.flags & 1), bool(row.flags & 2)), "options not those of the table")
    codes = matrix.codes.numpy()
    _expect(codes.dtype == np.int8 and list(codes.shape) == [rows, cols], "shape of codes")
    _check_numbers(matrix.scales, [rows], positive=True)
    if own:
        _expect([own.start, own.width, own.bits] == row.extras[:3] and 2 <= own.bits <= 8, "protected columns")
        inside[own.start : own.start + own.width] = True
        _expect(0 < inside.sum() == own.width < cols, "protected columns are not some of all")
        _check_numbers(own.scales, [rows], positive=True)
    _check_codes(codes[:, ~inside], next(planes))
    if own:
        _check_codes(codes[:, inside], next(planes))
    if mend:
        rank, group = row.extras[-2:]
        _expect(1 <= rank <= min(rows, cols) and 1 <= group == mend.group, "rank or group")
        _check_codes(mend.left.numpy(), next(planes))
        _check_codes(mend.right.numpy(), next(planes))
        _check_numbers(mend.left_scale, [1], positive=True)
        _check_numbers(mend.right_scales, [-(-rank * cols // group)], positive=True)


def _check_codes(codes: np.ndarray, plane: tuple[int, int, int, int]) -> None:
    rows, cols, low, high = plane
    _expect(codes.dtype == np.int8 and codes.shape == (rows, cols) and codes.size > 0, "shape of a plane")
    _expect(low <= int(codes.min()) and int(codes.max()) <= high, "codes out of range")


def _check_numbers(numbers: Tensor, shape: list[int], *, positive: bool) -> None:
    found = numbers.numpy()
    _expect(found.dtype == np.float16 and list(found.shape) == shape and found.size > 0, "shape of numbers")
    _expect(bool(np.isfinite(found).all()), "numbers not finite")
    _expect(not positive or bool((found > 0).all()), "scales not positive")


def _expect(right: bool, what: str) -> None:
    if not right:
        raise Finding("malformed", what)


def _check_again(anatomy: Anatomy, model: QuantizedModel, metadata: dict[str, Any]) -> str:
    """Packs what was read and compares. Returns "prediction" if that is what differs, else "". Raises Finding."""
    by_ans = anatomy.streams[0].codec == ANS
    try:
        data = artifact.pack(model, metadata=metadata, codec="ans" if by_ans else "brotli", quality=0)
        again, facts = artifact.unpack(data)
    except Exception as error:
        raise Finding("round trip", f"{type(error).__name__} at {_place(error)} where it is packed again") from error
    if not _equal(again, model) or facts != metadata:
        raise Finding("round trip", "packed again it is read as another model")
    for matrix in model.matrices.values():
        if matrix.codes.numel() <= LARGE:
            _expect(bool(dequantize_matrix(matrix).isfinite().all()), "weights not finite")
    repacked = dissect(data)
    found, expected = anatomy.essence(), repacked.essence()
    for what, part in (("metadata", 0), ("table", 1)):
        if found[part] != expected[part]:
            raise Finding("spelling", f"{what} that pack would have written otherwise")
    if found[2] == expected[2]:
        return ""
    planes = [plane[:2] for row in anatomy.rows for plane in row.planes()]
    coded = found[2][0], expected[2][0]
    if by_ans and found[2][1:] == expected[2][1:] and any(predicts(data, planes) for data in coded):
        return "prediction"
    raise Finding("spelling", "streams that pack would have written otherwise")


def _equal(one: Any, other: Any) -> bool:
    """Whether two models, or parts of them, are the same to the bit."""
    if isinstance(one, Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return torch.equal(*(t.view(torch.int16) if t.dtype == torch.float16 else t for t in (one, other)))
    if isinstance(one, dict):
        return list(one) == list(other) and all(_equal(value, other[name]) for name, value in one.items())
    if dataclasses.is_dataclass(one):
        return type(one) is type(other) and _equal(vars(one), vars(other))
    return bool(one == other)


def predicts(data: bytes, planes: list[tuple[int, int]]) -> bool:
    """Whether a stream of codes predicts a plane: its class is then 128, and one for each column and another follow."""
    at, found = 0, False
    for _, cols in planes:
        found |= data[at] == 128
        at += cols + 2 if data[at] == 128 else 1
    return found


def _spelling(anatomy: Anatomy, origin: bytes | None) -> str:
    """How it differs from a file of the same essence; "" if it has content of its own."""
    if origin is None or (original := dissect(origin)).essence() != anatomy.essence():
        return ""
    return "version" if original.version != anatomy.version else "brotli"
