"""The model's part of a submission: quantized tensors as one compressed, checked file, without pickle.

`pack` and `unpack` are inverse, and so are `write` and `read`. Equal models give equal bytes (for one version of
brotli), whatever the number of threads. Here a model becomes planes of codes and fp16 numbers; `trainer.codecs` and
`trainer.ans` make streams of those, `trainer.container` is the file around the streams, and docs/artifact.md has its
bytes.

A file may come from anywhere. The reader runs nothing from it, checks every size before it allocates for it, stops
each stream at the size that the table promises, and refuses content that `pack` can't be given: codes outside their
bits, scales that are not positive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer import ans, container
from trainer.ans import Plane
from trainer.codecs import ANS, Stream, load, shuffle, store, unshuffle
from trainer.container import Entry, LowRank, Protection
from trainer.errors import ArtifactError, quoted
from trainer.files import atomic
from trainer.quantized import Correction, Protected, QuantizedMatrix, QuantizedModel


def pack(
    quantized: QuantizedModel,
    *,
    metadata: Mapping[str, Any],
    codec: str = "brotli",
    quality: int = 11,
    threads: int = 1,
) -> bytes:
    """The artifact of a model, with a small JSON object of facts about it.

    `codec` is what codes are compressed by, "brotli" or "ans"; `quality` is brotli's, 0 to 11; `threads` compress at
    the same time and change no byte. Raises ArtifactError for another codec, and for a model that the format can't
    hold: no tensors, one name twice, tensors that do not fit each other, codes or scales that `unpack` would refuse.
    """
    if codec not in ("brotli", "ans"):
        raise ArtifactError(f"codec {codec!r}, expected brotli or ans; set artifact.codec")
    table = _table(quantized)
    described = container.describe(metadata, table)
    codes, scales, values = _parts(quantized, table)
    coded, plain = [], [shuffle(scales), shuffle(values)]
    if codec == "ans" and codes:
        planes = [plane for entry in table for plane in entry.planes()]
        coded = [Stream(ANS, ans.encode([plane.cpu().numpy() for plane in codes], planes))]
    else:
        plain = [plane.T.cpu().contiguous().numpy().tobytes() for plane in codes] + plain
    with ThreadPoolExecutor(threads) as pool:
        streams = coded + list(pool.map(partial(store, quality=quality), plain))
    return container.seal(described, streams, quality=quality)


def unpack(data: bytes) -> tuple[QuantizedModel, dict[str, Any]]:
    """The model and the metadata of an artifact. Raises ArtifactError, one line that says where, for the rest."""
    metadata, table, streams = container.unseal(data)
    matrices, vectors = ([entry for entry in table if bool(entry.bits) is kind] for kind in (True, False))
    codes = iter(_decode(streams[:-2], matrices))
    scales, values = (
        iter(_numbers(stream, entries, what))
        for stream, entries, what in zip(streams[-2:], (matrices, vectors), ("scales", "values"), strict=True)
    )
    model = QuantizedModel(
        {entry.name: _join(entry, codes, scales) for entry in matrices},
        {entry.name: _checked_numbers(entry, next(values), entry.shape) for entry in vectors},
    )
    return model, metadata


def write(
    path: Path,
    quantized: QuantizedModel,
    *,
    metadata: Mapping[str, Any],
    codec: str = "brotli",
    quality: int = 11,
    threads: int = 1,
) -> int:
    """Write an artifact as a whole; returns its size in bytes."""
    data = pack(quantized, metadata=metadata, codec=codec, quality=quality, threads=threads)
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    return len(data)


def read(path: Path) -> tuple[QuantizedModel, dict[str, Any]]:
    """`unpack` of a file. Raises ArtifactError with the path."""
    try:
        with path.open("rb") as stream:
            data = stream.read(container.MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ArtifactError(f"can't read the artifact {path}: {error.strerror}; run the stage quantize") from None
    try:
        return unpack(data)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None


def _table(quantized: QuantizedModel) -> list[Entry]:
    """A row for each tensor, names ascending, as the tensors' shapes have it."""
    entries = [Entry(name, 0, tuple(vector.shape)) for name, vector in quantized.vectors.items()]
    for name, m in quantized.matrices.items():
        if name in quantized.vectors:
            raise ArtifactError(f"{quoted(name)}: the name of a matrix and of a vector, expected one of them")
        if not m.bits:
            raise ArtifactError(f"{quoted(name)}: a matrix with codes of 0 bits, expected 2 to 8")
        own, mend = m.protected, m.correction
        protection = Protection(own.start, own.width, own.bits) if own else None
        low_rank = LowRank(mend.left.shape[-1], mend.group) if mend else None
        entries.append(Entry(name, m.bits, tuple(m.codes.shape), protection, low_rank))
    return sorted(entries, key=lambda entry: entry.name)


def _parts(quantized: QuantizedModel, table: Sequence[Entry]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Planes of codes, scales and values in the table's order. Raises ArtifactError for those that do not fit it."""
    codes: list[Tensor] = []
    scales: list[Tensor] = []
    values: list[Tensor] = []
    for entry in table:
        if entry.bits:
            planes, numbers = _split(quantized.matrices[entry.name])
            codes += [_checked_codes(entry, *pair) for pair in zip(planes, entry.planes(), strict=True)]
            scales += [_checked_numbers(entry, *pair) for pair in zip(numbers, entry.numbers(), strict=True)]
        else:
            values.append(_checked_numbers(entry, quantized.vectors[entry.name], entry.shape))
    return codes, scales, values


def _split(matrix: QuantizedMatrix) -> tuple[list[Tensor], list[Tensor]]:
    """A matrix's planes of codes and its scales, as `Entry.planes` and `Entry.numbers` list them."""
    codes, scales = [matrix.codes], [matrix.scales]
    if (own := matrix.protected) is not None:
        left, inside, right = matrix.codes.tensor_split([own.start, own.start + own.width], dim=1)
        codes = [torch.cat([left, right], dim=1), inside]
        scales.append(own.scales)
    if (mend := matrix.correction) is not None:
        codes += [mend.left, mend.right]
        scales += [mend.left_scale, mend.right_scales]
    return codes, scales


def _join(entry: Entry, codes: Iterator[Tensor], scales: Iterator[Tensor]) -> QuantizedMatrix:
    """The inverse of `_split`. Raises ArtifactError for values that quantization can't give."""
    found = [_checked_codes(entry, next(codes), plane) for plane in entry.planes()]
    numbers = [_checked_numbers(entry, next(scales), shape) for shape in entry.numbers()]
    whole, protected, correction = found[0], None, None
    if own := entry.protection:
        whole = torch.cat([whole[:, : own.start], found[1], whole[:, own.start :]], dim=1)
        protected = Protected(*own, scales=numbers[1])
    if entry.low_rank:
        left, right, left_scale, right_scales = *found[-2:], *numbers[-2:]
        correction = Correction(left, left_scale, right, right_scales, entry.low_rank.group)
    return QuantizedMatrix(whole, numbers[0], entry.bits, protected, correction)


def _decode(streams: Sequence[Stream], matrices: Sequence[Entry]) -> list[Tensor]:
    """The planes of codes, each int8 [rows, cols] with memory of its own, from their streams or from one for all."""
    planes = [(entry.name, plane) for entry in matrices for plane in entry.planes()]
    if streams and streams[0].codec == ANS:
        return [torch.from_numpy(codes) for codes in ans.decode(streams[0].data, [plane for _, plane in planes])]
    found = []
    for stream, (name, plane) in zip(streams, planes, strict=True):
        columns = np.frombuffer(load(stream, plane.rows * plane.cols, f"codes of {quoted(name)}"), np.int8)
        found.append(torch.from_numpy(columns.reshape(plane.cols, plane.rows).T.copy()))
    return found


def _numbers(stream: Stream, entries: Sequence[Entry], what: str) -> list[Tensor]:
    """The fp16 tensors of some rows of the table, one after the other."""
    shapes = [shape for entry in entries for shape in entry.numbers()]
    return unshuffle(load(stream, 2 * sum(map(math.prod, shapes)), what), shapes)


def _checked_codes(entry: Entry, codes: Tensor, plane: Plane) -> Tensor:
    if codes.dtype != torch.int8 or codes.shape != (plane.rows, plane.cols):
        raise ArtifactError(
            f"{quoted(entry.name)}: codes {codes.dtype} {list(codes.shape)}, expected int8 [{plane.rows}, {plane.cols}]"
        )
    values = codes.cpu().numpy()  # without threads: on a busy machine torch's wait a second for each other
    low, high = int(values.min()), int(values.max())
    if low < plane.low or high > plane.high:
        raise ArtifactError(
            f"{quoted(entry.name)}: codes from {low} to {high}, expected from {plane.low} to {plane.high}"
        )
    return codes


def _checked_numbers(entry: Entry, numbers: Tensor, shape: tuple[int, ...]) -> Tensor:
    if numbers.dtype != torch.float16 or numbers.shape != shape:
        raise ArtifactError(
            f"{quoted(entry.name)}: numbers {numbers.dtype} {list(numbers.shape)}, expected float16 {list(shape)}"
        )
    if not numbers.isfinite().all() or (entry.bits and not (numbers > 0).all()):
        raise ArtifactError(f"{quoted(entry.name)}: an fp16 number is NaN, infinite, or a scale that is not positive")
    return numbers
