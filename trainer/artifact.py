"""The model's part of a submission: quantized tensors as one compressed, checked file, without pickle.

`pack` and `unpack` are inverse, and so are `write` and `read`. Equal models give equal bytes (for one version of
brotli), whatever the number of threads.

The bytes, all integers little-endian and unsigned:

    4 magic "GOLF"; u32 version, 1; u32 stored size and u32 plain size of the header
    header, one brotli stream; plain it is
        u32 size of the metadata, then the metadata: a JSON object, keys sorted, no spaces, UTF-8
        u32 number of tensors, then each, ascending by name:
            u8 size of the name, the name in UTF-8; u8 kind, 0 for a vector, 2 to 8 for a matrix = bits of its codes;
            u8 number of dimensions (2 for a matrix), then each as u32, at least 1
        u32 stored size of each stream
    the streams, each brotli on its own, so that threads can compress them at the same time:
        the codes of every matrix, int8, column after column, one stream a matrix;
        the scales of all matrices, fp16, one stream, if there are matrices;
        the values of all vectors, fp16, one stream, if there are vectors;
        the fp16 streams hold the low bytes of all numbers first and then the high bytes ("byte shuffle", pg#1394)
    32 SHA-256 of everything before

Measured with brotli 11 on one layer of the real shape, int6, k 12.85, over the order-0 entropy: codes column by column
+1.44 % for Gaussian weights, -0.52 % with heavy tails and columns of unequal spread; row by row +1.44 % and +1.10 %;
shuffled bytes gain nothing in codes (-0.17 % in columns, +1.09 % in rows) and 2 % in scales; all matrices in one
stream gain .01 %.

A file may come from anywhere. The reader runs nothing from it, checks every size before it allocates for it, stops
each stream at the size that the header promises, and refuses content that `pack` can't be given: names not ascending,
trailing bytes, codes outside ±q_max, scales that are not positive.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import brotli
import numpy as np
import torch
from torch import Tensor

from trainer.errors import ArtifactError
from trainer.files import atomic
from trainer.quantized import QuantizedMatrix, QuantizedModel, q_max

VERSION = 1
MAX_FILE_BYTES = 1 << 28
"""Largest file that is read: 17 times the contest's limit."""
MAX_PLAIN_BYTES = 1 << 29
"""Most bytes of codes, scales and vectors that a file may decompress to."""
MAX_HEADER_BYTES = 1 << 20
MAX_NAME_BYTES = 255
MAX_DIMENSIONS = 8

_PREFIX = struct.Struct("<4sIII")
_MAGIC = b"GOLF"
_DIGEST_BYTES = 32


class _Entry(NamedTuple):
    """A row of the header's table. `bits` is 0 for a vector."""

    name: str
    bits: int
    shape: tuple[int, ...]


def pack(quantized: QuantizedModel, *, metadata: Mapping[str, Any], quality: int = 11, threads: int = 1) -> bytes:
    """The artifact of a model, with a small JSON object of facts about it.

    `quality` is brotli's, 0 to 11; `threads` compress at the same time and change no byte. Raises ArtifactError for
    a model that the format can't hold: no tensors, one name twice, codes or scales that `unpack` would refuse.
    """
    table, plain, facts = _table(quantized), _plain_streams(quantized), _canonical(metadata)
    # What the reader would refuse is refused here, by the same code, before a minute of compression.
    _parse_header(_header(table, facts, [0] * len(plain)))
    _assemble(table, plain)

    def compress(stream: bytes) -> bytes:
        return brotli.compress(stream, quality=quality, lgwin=24)  # type: ignore[no-any-return]

    with ThreadPoolExecutor(threads) as pool:
        stored = list(pool.map(compress, plain))
    header = _header(table, facts, [len(stream) for stream in stored])
    packed = compress(header)
    body = b"".join([_PREFIX.pack(_MAGIC, VERSION, len(packed), len(header)), packed, *stored])
    return body + hashlib.sha256(body).digest()


def unpack(data: bytes) -> tuple[QuantizedModel, dict[str, Any]]:
    """The model and the metadata of an artifact. Raises ArtifactError, one line that says where, for the rest."""
    if not _PREFIX.size + _DIGEST_BYTES <= len(data) <= MAX_FILE_BYTES:
        raise ArtifactError(
            f"artifact: {len(data)} bytes, expected from {_PREFIX.size + _DIGEST_BYTES} to {MAX_FILE_BYTES}"
        )
    magic, version, stored_size, plain_size = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise ArtifactError(f"artifact: begins with {magic!r}, expected {_MAGIC!r}; this is no golf model")
    if version != VERSION:
        raise ArtifactError(f"artifact: version {version}, expected {VERSION}; read it with the trainer that wrote it")
    if hashlib.sha256(data[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
        raise ArtifactError("artifact: content and SHA-256 differ, so it was damaged or cut; run quantize again")
    if plain_size > MAX_HEADER_BYTES:
        raise ArtifactError(f"header: {plain_size} bytes promised, expected at most {MAX_HEADER_BYTES}")
    body = _Cursor(data[_PREFIX.size : -_DIGEST_BYTES], "artifact")
    header = _inflate(body.take(stored_size, "header"), plain_size, "header")
    metadata, table, stored_sizes = _parse_header(header)
    stored = [body.take(size, f"stream {i}") for i, size in enumerate(stored_sizes)]
    body.expect_end()
    plain = [
        _inflate(s, size, f"stream {i}") for i, (s, size) in enumerate(zip(stored, _stream_sizes(table), strict=True))
    ]
    return _assemble(table, plain), metadata


def write(
    path: Path, quantized: QuantizedModel, *, metadata: Mapping[str, Any], quality: int = 11, threads: int = 1
) -> int:
    """Write an artifact as a whole; returns its size in bytes."""
    data = pack(quantized, metadata=metadata, quality=quality, threads=threads)
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    return len(data)


def read(path: Path) -> tuple[QuantizedModel, dict[str, Any]]:
    """`unpack` of a file. Raises ArtifactError with the path."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ArtifactError(f"can't read the artifact {path}: {error.strerror}; run the stage quantize") from None
    try:
        return unpack(data)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None


def _table(quantized: QuantizedModel) -> list[_Entry]:
    """The rows of the header's table. Raises ArtifactError for tensors that have no place in it."""
    for name, m in quantized.matrices.items():
        types, shapes = (m.codes.dtype, m.scales.dtype), (m.codes.dim(), m.scales.shape)
        if types != (torch.int8, torch.float16) or shapes != (2, m.codes.shape[:1]):
            raise ArtifactError(f"{name}: {types} of {shapes}, expected int8 codes [rows, cols] and fp16 scales [rows]")
    for name, vector in quantized.vectors.items():
        if name in quantized.matrices or vector.dtype != torch.float16:
            raise ArtifactError(f"{name}: a vector of {vector.dtype}, expected fp16 and a name that no matrix has")
    entries = [_Entry(name, m.bits, tuple(m.codes.shape)) for name, m in quantized.matrices.items()]
    entries += [_Entry(name, 0, tuple(vector.shape)) for name, vector in quantized.vectors.items()]
    return sorted(entries)


def _plain_streams(quantized: QuantizedModel) -> list[bytes]:
    """The streams before compression, in the file's order."""
    matrices = [quantized.matrices[name] for name in sorted(quantized.matrices)]
    codes = [m.codes.T.cpu().contiguous().numpy().tobytes() for m in matrices]
    halves = [
        _shuffle([m.scales for m in matrices]),
        _shuffle([quantized.vectors[n] for n in sorted(quantized.vectors)]),
    ]
    return codes + [stream for stream in halves if stream]


def _stream_sizes(table: Sequence[_Entry]) -> list[int]:
    """Plain bytes of each stream, from the table alone."""
    matrices = [entry for entry in table if entry.bits]
    halves = [2 * sum(m.shape[0] for m in matrices), 2 * sum(math.prod(e.shape) for e in table if not e.bits)]
    return [math.prod(m.shape) for m in matrices] + [size for size in halves if size]


def _assemble(table: Sequence[_Entry], plain: Sequence[bytes]) -> QuantizedModel:
    """The model from its table and plain streams. Raises ArtifactError for values that quantization can't give."""
    streams = iter(plain)
    matrices = [entry for entry in table if entry.bits]
    codes = {m.name: _codes(next(streams), m) for m in matrices}
    scales = _unshuffle(next(streams), [m.shape[:1] for m in matrices]) if matrices else []
    vectors = [entry for entry in table if not entry.bits]
    values = _unshuffle(next(streams), [v.shape for v in vectors]) if vectors else []
    for entry, tensor in [*zip(matrices, scales, strict=True), *zip(vectors, values, strict=True)]:
        if not tensor.isfinite().all() or (entry.bits and not (tensor > 0).all()):
            raise ArtifactError(f"{entry.name}: an fp16 number is NaN, infinite, or a scale that is not positive")
    return QuantizedModel(
        {m.name: QuantizedMatrix(codes[m.name], s, m.bits) for m, s in zip(matrices, scales, strict=True)},
        {v.name: value for v, value in zip(vectors, values, strict=True)},
    )


def _codes(stream: bytes, entry: _Entry) -> Tensor:
    codes = np.frombuffer(stream, np.int8)
    low, high, limit = int(codes.min()), int(codes.max()), q_max(entry.bits)
    if low < -limit or high > limit:
        raise ArtifactError(f"{entry.name}: codes from {low} to {high}, expected within ±{limit} for {entry.bits} bits")
    return torch.from_numpy(codes.reshape(entry.shape[::-1]).T.copy())


def _shuffle(tensors: Sequence[Tensor]) -> bytes:
    """fp16 tensors one after the other: all low bytes, then all high bytes."""
    plain = b"".join(tensor.cpu().numpy().astype("<f2").tobytes() for tensor in tensors)
    return np.frombuffer(plain, np.uint8).reshape(-1, 2).T.tobytes()


def _unshuffle(stream: bytes, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The inverse of `_shuffle`."""
    plain = np.frombuffer(stream, np.uint8).reshape(2, -1).T.tobytes()
    tensors, offset = [], 0
    for shape in shapes:
        values = np.frombuffer(plain, "<f2", math.prod(shape), offset).astype(np.float16)
        tensors.append(torch.from_numpy(values.reshape(shape)))
        offset += values.nbytes
    return tensors


def _canonical(metadata: Mapping[str, Any]) -> bytes:
    text = json.dumps(dict(metadata), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def _header(table: Sequence[_Entry], metadata: bytes, stored_sizes: Sequence[int]) -> bytes:
    parts = [struct.pack("<I", len(metadata)), metadata, struct.pack("<I", len(table))]
    for entry in table:
        name, dimensions = entry.name.encode("utf-8"), len(entry.shape)
        if len(name) > MAX_NAME_BYTES:
            raise ArtifactError(f"{entry.name!r}: {len(name)} bytes, expected a name of at most {MAX_NAME_BYTES}")
        parts.append(
            struct.pack(f"<B{len(name)}sBB{dimensions}I", len(name), name, entry.bits, dimensions, *entry.shape)
        )
    header = b"".join([*parts, struct.pack(f"<{len(stored_sizes)}I", *stored_sizes)])
    if len(header) > MAX_HEADER_BYTES:
        raise ArtifactError(f"header: {len(header)} bytes, expected at most {MAX_HEADER_BYTES}; shorten the metadata")
    return header


def _parse_header(header: bytes) -> tuple[dict[str, Any], list[_Entry], list[int]]:
    """The inverse of `_header`: metadata, table, stored sizes of the streams."""
    cursor = _Cursor(header, "header")
    metadata = _parse_metadata(cursor.take(cursor.number(4, "metadata size"), "metadata"))
    table: list[_Entry] = []
    plain = 0
    for i in range(cursor.number(4, "number of tensors")):
        entry = _parse_entry(cursor, i)
        if table and entry.name <= table[-1].name:
            raise ArtifactError(
                f"header: tensor {i} is {entry.name!r} after {table[-1].name!r}, expected names ascending"
            )
        plain += math.prod(entry.shape) * (1 if entry.bits else 2)
        if plain > MAX_PLAIN_BYTES:
            raise ArtifactError(
                f"header: tensors up to {entry.name!r} take {plain} bytes, the limit is {MAX_PLAIN_BYTES}"
            )
        table.append(entry)
    if not table:
        raise ArtifactError("header: no tensors, expected at least one")
    stored_sizes = [cursor.number(4, f"size of stream {i}") for i in range(len(_stream_sizes(table)))]
    cursor.expect_end()
    return metadata, table, stored_sizes


def _parse_entry(cursor: _Cursor, index: int) -> _Entry:
    what = f"tensor {index}"
    try:
        name = cursor.take(cursor.number(1, what), what).decode("utf-8")
    except UnicodeDecodeError:
        raise ArtifactError(f"header: the name of {what} is not UTF-8") from None
    bits, dimensions = cursor.number(1, what), cursor.number(1, what)
    if bits not in (0, *range(2, 9)) or dimensions > MAX_DIMENSIONS or (bits and dimensions != 2):
        raise ArtifactError(
            f"header: {name!r} has kind {bits} and {dimensions} dimensions, expected 2 to 8 and 2, or 0"
        )
    shape = tuple(cursor.number(4, what) for _ in range(dimensions))
    if 0 in shape:
        raise ArtifactError(f"header: {name!r} has shape {list(shape)}, expected no empty tensors")
    return _Entry(name, bits, shape)


def _parse_metadata(text: bytes) -> dict[str, Any]:
    """Metadata that `_canonical` gives back byte for byte, so nothing hides in doubled keys or white space."""
    try:
        metadata: dict[str, Any] = json.loads(text.decode("utf-8"))
        canonical = isinstance(metadata, dict) and _canonical(metadata) == text
    except (ValueError, RecursionError):
        canonical = False
    if not canonical:
        raise ArtifactError("header: metadata is not a JSON object in canonical form")
    return metadata


def _inflate(stream: bytes, size: int, what: str) -> bytes:
    """Exactly `size` bytes of a brotli stream, never holding more than 32 KiB beyond them and brotli's window."""
    decoder = brotli.Decompressor()
    parts: list[bytes] = []
    held = 0
    try:
        while held <= size and not decoder.is_finished():
            # An empty answer, and nothing else, means that the decoder waits for input that does not exist:
            # `can_accept_more_data` is true as well while the last bits taken in still stand for much output.
            parts.append(decoder.process(b"" if parts else stream, output_buffer_limit=1 << 15))
            held += len(parts[-1])
            if not parts[-1] and not decoder.is_finished():
                raise ArtifactError(f"{what}: ends after {held} of {size} bytes")
    except brotli.error:
        raise ArtifactError(f"{what}: not a brotli stream, or something follows it") from None
    if held != size:
        raise ArtifactError(
            f"{what}: decompresses to {'more' if held > size else 'less'} than the {size} bytes promised"
        )
    return b"".join(parts)


class _Cursor:
    """Reads forward through bytes; raises ArtifactError instead of running over their end."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where, self.offset = data, where, 0

    def take(self, count: int, what: str) -> bytes:
        if count > len(self.data) - self.offset:
            raise ArtifactError(f"{self.where}: {what} needs {count} bytes at offset {self.offset} of {len(self.data)}")
        self.offset += count
        return self.data[self.offset - count : self.offset]

    def number(self, count: int, what: str) -> int:
        return int.from_bytes(self.take(count, what), "little")

    def expect_end(self) -> None:
        if self.offset != len(self.data):
            raise ArtifactError(f"{self.where}: {len(self.data) - self.offset} bytes after the end, expected none")
