"""A file as its parts and back, by docs/artifact.md alone, in another hand than the reader under test.

    anatomy = dissect(data)         of a file that is right; AnatomyError for another
    data = assemble(anatomy)        with sizes and digest that fit, whatever the parts say

`essence` is what two files have in common that differ in nothing but what brotli is free to choose.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import struct
from typing import NamedTuple

import brotli

RAW, BROTLI, ANS = 0, 1, 2
DIGEST_BYTES = 32
PREFIX_BYTES = 16
LARGEST = 1 << 26


class AnatomyError(Exception):
    """The bytes are not as docs/artifact.md has them."""


class Stream(NamedTuple):
    """Bytes as they lie in a file, and their codec."""

    codec: int
    data: bytes

    def plain(self) -> bytes:
        """What it stands for; a stream of codec 2 stands for itself."""
        return inflate(self.data) if self.codec == BROTLI else self.data


def inflate(data: bytes) -> bytes:
    """A whole brotli stream of at most LARGEST bytes."""
    decoder = brotli.Decompressor()
    plain: bytes = decoder.process(data, output_buffer_limit=LARGEST)
    if not decoder.is_finished():
        raise AnatomyError("a brotli stream without an end")
    return plain


@dataclasses.dataclass
class Row:
    """A row of the table. `extras` are the numbers behind the flags: (4, 4, 1) bytes, (4, 2) bytes, or both."""

    name: bytes
    kind: int
    shape: list[int]
    flags: int = 0
    extras: list[int] = dataclasses.field(default_factory=list)

    def widths(self) -> list[int]:
        """Bytes of each of the extras."""
        return [4, 4, 1] * (self.flags & 1) + [4, 2] * (self.flags >> 1 & 1)

    def planes(self) -> list[tuple[int, int, int, int]]:
        """Rows, columns, lowest and highest code of each plane."""
        if not self.kind:
            return []
        (rows, cols), limit = self.shape, 2 ** (self.kind - 1) - 1
        width = self.extras[1] if self.flags & 1 else 0
        found = [(rows, cols - width, -limit, limit)]
        if self.flags & 1:
            limit = 2 ** (self.extras[2] - 1) - 1
            found.append((rows, width, -limit, limit))
        if self.flags & 2:
            found += [(rows, self.extras[-2], -2, 1), (self.extras[-2], cols, -8, 7)]
        return found

    def numbers(self) -> int:
        """How many fp16 numbers it has."""
        if not self.kind:
            return math.prod(self.shape)
        groups = 1 + -(-self.extras[-2] * self.shape[1] // self.extras[-1]) if self.flags & 2 else 0
        return self.shape[0] * (1 + (self.flags & 1)) + groups

    def packed(self, version: int) -> bytes:
        """Its bytes. Numbers that are too large for their field wrap, so that lies have bytes too."""
        name = self.name[:255]
        dimensions = b"".join(number.to_bytes(4, "little") for number in (n % 2**32 for n in self.shape))
        row = bytes([len(name)]) + name + bytes([self.kind % 256, len(self.shape) % 256]) + dimensions
        if version == 1 or not self.kind:
            return row
        extras = zip(self.extras, self.widths(), strict=False)
        return row + bytes([self.flags % 256]) + b"".join((n % 256**w).to_bytes(w, "little") for n, w in extras)


@dataclasses.dataclass
class Anatomy:
    """All parts of a file. `count` stands in the place of the number of rows, `directory` of the true one, if set."""

    version: int
    facts: bytes
    rows: list[Row]
    streams: list[Stream]
    count: int | None = None
    directory: list[tuple[int, int]] | None = None

    def copy(self) -> Anatomy:
        """Parts to be changed."""
        rows = [dataclasses.replace(row, shape=[*row.shape], extras=[*row.extras]) for row in self.rows]
        return dataclasses.replace(self, rows=rows, streams=[*self.streams])

    def header(self) -> bytes:
        """The header, unpacked."""
        count = len(self.rows) if self.count is None else self.count
        directory = self.directory or [(codec, len(data)) for codec, data in self.streams]
        return b"".join(
            [
                struct.pack("<I", len(self.facts)) + self.facts + struct.pack("<I", count % 2**32),
                *(row.packed(self.version) for row in self.rows),
                *(_entry(self.version, codec, size) for codec, size in directory),
            ]
        )

    def plain(self) -> list[bytes]:
        """What each stream stands for."""
        return [stream.plain() for stream in self.streams]

    def essence(self) -> tuple[bytes, tuple[bytes, ...], tuple[bytes, ...]]:
        """Metadata, rows and plain streams, as version 2 has them."""
        streams = self.plain()
        if self.version == 1:
            codes = sum(bool(row.kind) for row in self.rows)
            streams = streams[:codes] + ([b""] if not codes else []) + streams[codes:]
            streams += [] if codes < len(self.rows) else [b""]
        return self.facts, tuple(row.packed(2) for row in self.rows), tuple(streams)


def _entry(version: int, codec: int, size: int) -> bytes:
    return (b"" if version == 1 else bytes([codec % 256])) + (size % 2**32).to_bytes(4, "little")


def reseal(body: bytes) -> bytes:
    """A file of everything before the digest."""
    return body + hashlib.sha256(body).digest()


def stored(plain: bytes, quality: int = 1) -> Stream:
    """Brotli where that is shorter."""
    packed = brotli.compress(plain, quality=quality)
    return Stream(BROTLI, packed) if len(packed) < len(plain) else Stream(RAW, plain)


def assemble(anatomy: Anatomy, header: bytes | None = None) -> bytes:
    """The file of the parts, or of another header, unpacked, and the streams of the parts."""
    header = anatomy.header() if header is None else header
    packed = brotli.compress(header, quality=1) if anatomy.version == 1 else stored(header).data
    return enclose(anatomy, packed, len(header))


def enclose(anatomy: Anatomy, packed: bytes, size: int) -> bytes:
    """The file around a header as stored, which promises `size`."""
    prefix = struct.pack("<4sIII", b"GOLF", anatomy.version, len(packed), size)
    return reseal(b"".join([prefix, packed, *(stream.data for stream in anatomy.streams)]))


def dissect(data: bytes) -> Anatomy:
    """The inverse of `assemble`."""
    try:
        magic, version, stored_size, size = struct.unpack_from("<4sIII", data)
        if stored_size > size + (size // 1000 + 64 if version == 1 else 0):
            raise AnatomyError("a header that is longer as stored than it may be")
        body = _Bytes(data[PREFIX_BYTES:-DIGEST_BYTES])
        packed = body.take(stored_size)
        header = _Bytes(packed if version == 2 and stored_size == size else inflate(packed))
        if (magic, version in (1, 2), len(header.data)) != (b"GOLF", True, size):
            raise AnatomyError("prefix")
        facts = header.take(header.number(4))
        rows = [_row(header, version) for _ in range(header.number(4))]
        directory = _directory(header, rows, version)
        streams = [Stream(codec, body.take(size)) for codec, size in directory]
    except (struct.error, brotli.error) as error:
        raise AnatomyError(str(error)) from error
    if header.rest() or body.rest() or reseal(data[:-DIGEST_BYTES]) != data:
        raise AnatomyError("bytes that belong to nothing, or another digest")
    return Anatomy(version, facts, rows, streams)


def _row(header: _Bytes, version: int) -> Row:
    row = Row(header.take(header.number(1)), header.number(1), [])
    row.shape = [header.number(4) for _ in range(header.number(1))]
    if version == 2 and row.kind:
        row.flags = header.number(1)
        row.extras = [header.number(width) for width in row.widths()]
    return row


def _directory(header: _Bytes, rows: list[Row], version: int) -> list[tuple[int, int]]:
    planes, matrices = sum(len(row.planes()) for row in rows), sum(bool(row.kind) for row in rows)
    if version == 1:
        count = planes + bool(matrices) + (matrices < len(rows))
        return [(BROTLI, header.number(4)) for _ in range(count)]
    first = header.number(1), header.number(4)
    count = 3 if first[0] == ANS else planes + 2
    return [first, *((header.number(1), header.number(4)) for _ in range(count - 1))]


class _Bytes:
    """Reads forward."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise AnatomyError(f"{count} bytes at {self.at} of {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def rest(self) -> bytes:
        return self.data[self.at :]
