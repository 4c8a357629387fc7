"""The file around an artifact's streams: prefix, header with the table, digest. docs/artifact.md has its bytes.

`describe` and `seal` write it, `unseal` is their inverse. All that a reader must believe before it allocates is
checked here, with one line of error that says where; what the writer can't give is refused where that is cheap, so
that nothing hides in a file.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trainer.ans import Plane
from trainer.codecs import ANS, BROTLI, RAW, Stream, load, store
from trainer.errors import ArtifactError, quoted
from trainer.quantized import LEFT_BITS, RIGHT_BITS, q_max

VERSION = 2
"""Written; version 1, which has neither protected columns nor corrections nor codecs, is read as well."""
MAX_FILE_BYTES = 1 << 25
"""Largest file: twice the contest's limit."""
MAX_CONTENT_BYTES = 1 << 26
"""Most bytes of codes and fp16 numbers that a file may decode to: 1.8 times those of the real model."""
MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 1 << 12
"""Thirty times those of the real model: what one costs beside its content stays small."""
MAX_NAME_BYTES = 255
MAX_DIMENSIONS = 8
MAX_GROUP = (1 << 16) - 1

_PREFIX = struct.Struct("<4sIII")
_STREAM = struct.Struct("<BI")
_MAGIC = b"GOLF"
_DIGEST_BYTES = 32
_PROTECTED, _CORRECTED = 1, 2
_BITS = range(2, 9)


class Protection(NamedTuple):
    """Columns `start` to `start + width` have codes of `bits` and a scale a row of their own."""

    start: int
    width: int
    bits: int


class LowRank(NamedTuple):
    """A correction of `rank`, with a scale for each `group` entries of its right factor."""

    rank: int
    group: int


class Entry(NamedTuple):
    """A row of the table. `bits` is 0 for a vector, which has neither of the last two."""

    name: str
    bits: int
    shape: tuple[int, ...]
    protection: Protection | None = None
    low_rank: LowRank | None = None

    def planes(self) -> list[Plane]:
        """Its planes of codes: none for a vector; else codes, protected codes, left and right factor, if there."""
        if not self.bits:
            return []
        rows, cols = self.shape
        width, limit = self.protection.width if self.protection else 0, q_max(self.bits)
        planes = [Plane(rows, cols - width, -limit, limit)]
        if self.protection:
            limit = q_max(self.protection.bits)
            planes.append(Plane(rows, width, -limit, limit))
        if self.low_rank:
            left, right = q_max(LEFT_BITS), q_max(RIGHT_BITS)
            planes.append(Plane(rows, self.low_rank.rank, -left - 1, left))
            planes.append(Plane(self.low_rank.rank, cols, -right - 1, right))
        return planes

    def numbers(self) -> list[tuple[int, ...]]:
        """Shapes of its fp16 tensors: a vector's own; else scales of rows, of protected rows, of the factors."""
        if not self.bits:
            return [self.shape]
        shapes: list[tuple[int, ...]] = [self.shape[:1]] * (2 if self.protection else 1)
        if self.low_rank:
            shapes += [(1,), (-(-self.low_rank.rank * self.shape[1] // self.low_rank.group),)]
        return shapes


class Content(NamedTuple):
    """What a file holds: metadata, the table, and each stream as stored: those of the codes, scales, values."""

    metadata: dict[str, Any]
    table: list[Entry]
    streams: list[Stream]


def describe(metadata: Mapping[str, Any], table: Sequence[Entry]) -> bytes:
    """The header up to the directory of streams.

    Raises ArtifactError for what `unseal` would refuse: a table that no file may have, a header that is too large.
    Metadata that are no JSON raise what `json` raises.
    """
    check_table(table)
    text = _canonical(metadata)
    rows = [_row(entry) for entry in table]
    described = b"".join([struct.pack("<I", len(text)), text, struct.pack("<I", len(table)), *rows])
    size = len(described) + _STREAM.size * len(plain_sizes(table))
    if size > MAX_HEADER_BYTES:
        raise ArtifactError(f"header: {size} bytes, expected at most {MAX_HEADER_BYTES}; shorten the metadata")
    return described


def seal(described: bytes, streams: Sequence[Stream], *, quality: int) -> bytes:
    """The file of what `describe` gives and of the streams of its table, in the order of `plain_sizes`."""
    header = described + b"".join(_STREAM.pack(stream.codec, len(stream.data)) for stream in streams)
    stored = store(header, quality).data
    prefix = _PREFIX.pack(_MAGIC, VERSION, len(stored), len(header))
    body = b"".join([prefix, stored, *(stream.data for stream in streams)])
    if len(body) + _DIGEST_BYTES > MAX_FILE_BYTES:
        raise ArtifactError(
            f"artifact: {len(body)} bytes, expected at most {MAX_FILE_BYTES}; raise k or lower the bits"
        )
    return body + hashlib.sha256(body).digest()


def unseal(data: bytes) -> Content:
    """What `describe` and `seal` were given, from a file of version 1 too. Raises ArtifactError for any other bytes."""
    if not _PREFIX.size + _DIGEST_BYTES <= len(data) <= MAX_FILE_BYTES:
        raise ArtifactError(
            f"artifact: {len(data)} bytes, expected from {_PREFIX.size + _DIGEST_BYTES} to {MAX_FILE_BYTES}"
        )
    magic, version, stored, size = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise ArtifactError(f"artifact: begins with {magic!r}, expected {_MAGIC!r}; this is no golf model")
    if not 1 <= version <= VERSION:
        raise ArtifactError(
            f"artifact: version {version}, expected 1 to {VERSION}; read it with the trainer that wrote it"
        )
    end = len(data) - _DIGEST_BYTES
    if hashlib.sha256(memoryview(data)[:end]).digest() != data[end:]:
        raise ArtifactError("artifact: content and SHA-256 differ, so it was damaged or cut; run quantize again")
    most = size if version > 1 else _most_stored(size)
    if size > MAX_HEADER_BYTES or stored > most:
        raise ArtifactError(
            f"header: {size} bytes promised, {stored} stored, expected at most {MAX_HEADER_BYTES} and {most}"
        )
    body = _Cursor(data, "artifact", _PREFIX.size, end)
    header = Stream(RAW if version > 1 and stored == size else BROTLI, body.take(stored, "header"))
    metadata, table, directory = _parse_header(load(header, size, "header"), version)
    streams = [Stream(codec, body.take(size, f"stream {i}")) for i, (codec, size) in enumerate(directory)]
    body.expect_end()
    return Content(metadata, table, streams)


def plain_sizes(table: Sequence[Entry]) -> list[int]:
    """Bytes of each stream before compression: a plane of codes each, then all scales, then all values."""
    scales, values = (
        2 * sum(math.prod(shape) for entry in table if bool(entry.bits) is kind for shape in entry.numbers())
        for kind in (True, False)
    )
    return [*(plane.rows * plane.cols for entry in table for plane in entry.planes()), scales, values]


def check_table(table: Sequence[Entry]) -> None:
    """Raises ArtifactError for a table that no file may have."""
    if not 1 <= len(table) <= MAX_TENSORS:
        raise ArtifactError(f"header: {len(table)} tensors, expected 1 to {MAX_TENSORS}")
    content = 0
    for i, entry in enumerate(table):
        if i and entry.name <= table[i - 1].name:
            names = f"{quoted(entry.name)} after {quoted(table[i - 1].name)}"
            raise ArtifactError(f"header: tensor {i} is {names}, expected names ascending")
        _check_entry(entry)
        content += sum(plain_sizes([entry]))
        if content > MAX_CONTENT_BYTES:
            raise ArtifactError(
                f"header: tensors up to {quoted(entry.name)} take {content} bytes, the limit is {MAX_CONTENT_BYTES}"
            )


def _check_entry(entry: Entry) -> None:
    name, bits, shape, own, low_rank = entry
    what = f"header: {quoted(name)}"
    if not (len(shape) == 2 if bits in _BITS else bits == 0 and len(shape) <= MAX_DIMENSIONS):
        raise ArtifactError(f"{what} has kind {bits} and {len(shape)} dimensions, expected 2 to 8 and 2, or 0")
    if 0 in shape:
        raise ArtifactError(f"{what} has shape {list(shape)}, expected no empty tensors")
    if own and not (own.bits in _BITS and 0 < own.width < shape[1] and 0 <= own.start <= shape[1] - own.width):
        raise ArtifactError(
            f"{what} protects {own.width} columns from {own.start} on with {own.bits} bits, "
            f"expected some of its {shape[1]}, not all, with 2 to 8"
        )
    if low_rank and not (1 <= low_rank.rank <= min(shape) and 1 <= low_rank.group <= MAX_GROUP):
        raise ArtifactError(
            f"{what} is corrected with rank {low_rank.rank} in groups of {low_rank.group}, "
            f"expected 1 to {min(shape)} and 1 to {MAX_GROUP}"
        )


def _row(entry: Entry) -> bytes:
    try:
        name, dimensions = entry.name.encode("utf-8"), len(entry.shape)
    except UnicodeEncodeError:
        raise ArtifactError(f"{quoted(entry.name)}: half of a surrogate pair, expected a name in UTF-8") from None
    if len(name) > MAX_NAME_BYTES:
        raise ArtifactError(f"{quoted(entry.name)}: {len(name)} bytes, expected a name of at most {MAX_NAME_BYTES}")
    row = struct.pack(f"<B{len(name)}sBB{dimensions}I", len(name), name, entry.bits, dimensions, *entry.shape)
    if entry.bits:
        row += bytes([_PROTECTED * bool(entry.protection) + _CORRECTED * bool(entry.low_rank)])
    row += struct.pack("<IIB", *entry.protection) if entry.protection else b""
    return row + (struct.pack("<IH", *entry.low_rank) if entry.low_rank else b"")


def _parse_header(header: bytes, version: int) -> tuple[dict[str, Any], list[Entry], list[tuple[int, int]]]:
    """Metadata, table, and codec and stored size of each stream."""
    cursor = _Cursor(header, "header", 0, len(header))
    metadata = _parse_metadata(cursor.take(cursor.number(4, "metadata size"), "metadata"))
    table = [_parse_row(cursor, i, version) for i in range(cursor.number(4, "number of tensors"))]
    check_table(table)
    directory = _parse_directory(cursor, table, version)
    cursor.expect_end()
    return metadata, table, directory


def _parse_row(cursor: _Cursor, index: int, version: int) -> Entry:
    """The inverse of `_row`; whether the row makes sense is for `check_table`."""
    what = f"tensor {index}"
    try:
        name = cursor.take(cursor.number(1, what), what).decode("utf-8")
    except UnicodeDecodeError:
        raise ArtifactError(f"header: the name of {what} is not UTF-8") from None
    bits, dimensions = cursor.number(1, what), cursor.number(1, what)
    shape = tuple(cursor.number(4, what) for _ in range(dimensions))
    flags = cursor.number(1, what) if version > 1 and bits else 0
    if flags > _PROTECTED + _CORRECTED:
        raise ArtifactError(f"header: {quoted(name)} has flags {flags}, expected at most {_PROTECTED + _CORRECTED}")
    protection = Protection(*(cursor.number(n, what) for n in (4, 4, 1))) if flags & _PROTECTED else None
    low_rank = LowRank(*(cursor.number(n, what) for n in (4, 2))) if flags & _CORRECTED else None
    return Entry(name, bits, shape, protection, low_rank)


def _parse_directory(cursor: _Cursor, table: Sequence[Entry], version: int) -> list[tuple[int, int]]:
    """Codec and stored size of each stream. If the first is of the codec ans, it holds all planes of codes."""
    sizes = plain_sizes(table)
    found: list[tuple[int, int]] = []
    while len(found) < len(sizes):
        what, size = f"stream {len(found)}", sizes[len(found)]
        if version == 1 and not size:
            found.append((RAW, 0))  # version 1 has no streams of nothing
            continue
        codec = BROTLI if version == 1 else cursor.number(1, what)
        stored = cursor.number(4, what)
        if codec == ANS and not found and len(sizes) > 2:
            sizes[:-2] = [0]
        elif codec not in (RAW, BROTLI):
            raise ArtifactError(f"header: {what} has codec {codec}, expected {RAW}, {BROTLI}, or {ANS} for all codes")
        elif version == 1 and stored > _most_stored(size):
            raise ArtifactError(f"header: {what} has {stored} bytes for {size}, expected at most {_most_stored(size)}")
        elif version > 1 and not (stored < size if codec == BROTLI else stored == size):
            raise ArtifactError(
                f"header: {what} has {stored} bytes for {size} by codec {codec}, expected {BROTLI} for less, else {RAW}"
            )
        found.append((codec, stored))
    return found


def _most_stored(size: int) -> int:
    """Most bytes of a stream of version 1, which is always brotli, for `size` plain ones.

    Brotli with the writer's window of 2^24 takes less for any bytes: for noise 4 more than it has, 49 in 33 MB.
    """
    return size + size // 1000 + 64


def _canonical(metadata: Mapping[str, Any]) -> bytes:
    text = json.dumps(dict(metadata), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


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


class _Cursor:
    """Reads forward through `data` from `offset` to `end`; raises ArtifactError instead of running over it."""

    def __init__(self, data: bytes, where: str, offset: int, end: int) -> None:
        self.data, self.where, self.offset, self.end = data, where, offset, end

    def take(self, count: int, what: str) -> bytes:
        if count > self.end - self.offset:
            raise ArtifactError(f"{self.where}: {what} needs {count} bytes at offset {self.offset} of {self.end}")
        self.offset += count
        return self.data[self.offset - count : self.offset]

    def number(self, count: int, what: str) -> int:
        return int.from_bytes(self.take(count, what), "little")

    def expect_end(self) -> None:
        if self.offset != self.end:
            raise ArtifactError(f"{self.where}: {self.end - self.offset} bytes after the end, expected none")
