"""The bytes of a ledger: its header, its blocks, and what stands in them. `docs/ledger.md` is the same in tables.

    records → encode → two plain parts → pack → bytes of a block           decode is the inverse of encode,
    bytes of a file → read → two plain parts → decode → Block              read that of pack

A block has two parts, so that what depends on the clock can be left out of a comparison: facts (kinds, tables, notes)
and clock (times, hosts, paths). Each is column by column, because columns of equal kind compress and are read without
a loop, and each is one zlib stream.

There is one encoding of a content: whatever `decode` accepts, `encode` would have written. Every length is checked
before anything is allocated for it, so a hostile block costs at most a few times MOST_PLAIN_BYTES.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from audit.errors import LedgerError
from audit.records import (
    DIGEST_BYTES,
    FLAGS,
    KINDS,
    LISTS,
    NAMES,
    STORED,
    TABLES,
    Block,
    Note,
    Record,
    from_json,
    is_name,
    loaded,
)

VERSION = 1
HEADER = struct.Struct("<8sIII32s32s")
"""Magic, version, rank, ranks, the seal of the stage before (zeros if there is none), digest of all that."""
BLOCK = struct.Struct("<4s6I8s32s")
"""Magic, the six `Lengths`, their check, digest."""
MAGIC, BLOCK_MAGIC = b"GOLFLEDG", b"BLCK"
NO_SEAL = bytes(32)
CHECK_BYTES = 8

MOST_PLAIN_BYTES = 1 << 23
"""Bytes of a part, packed or not. Blocks that say they have more are refused unread."""
MOST_BLOCK_RECORDS = 1 << 16
MOST_JSON_BYTES = 1 << 20
"""Bytes of the notes in one part of a block: what a parser makes of them takes up to thirty times as much."""


class Lengths(NamedTuple):
    """What a block's head says of it, each 32 bits: its number, its records, bytes of both parts packed and plain."""

    number: int
    records: int
    facts_stored: int
    facts_plain: int
    clock_stored: int
    clock_plain: int


def hashed(domain: str, *parts: bytes) -> bytes:
    """SHA-256 of parts under a domain of their own, so that no two kinds of digest can be mistaken for each other."""
    digest = hashlib.sha256(f"golf-audit ledger {domain} 1\n".encode())
    for part in parts:
        digest.update(part)
    return digest.digest()


def text(digest: bytes) -> str:
    """`sha256:…` of 32 bytes."""
    return "sha256:" + digest.hex()


# The header


class Header(NamedTuple):
    """Whose ledger it is, and `head`, the digest of the header, with which the chain begins."""

    rank: int
    ranks: int
    previous: bytes
    head: bytes


def header(*, rank: int, ranks: int, previous: bytes) -> bytes:
    """The first bytes of a ledger. Raises LedgerError for a rank that is none."""
    if not 0 <= rank < ranks < 1 << 32 or len(previous) != DIGEST_BYTES:
        raise LedgerError(
            f"got rank {rank} of {ranks} and a seal of {len(previous)} bytes, expected 0 to ranks - 1, 32"
        )
    fields = HEADER.pack(MAGIC, VERSION, rank, ranks, previous, b"")[:-DIGEST_BYTES]
    return fields + hashed("header", fields)


def parse_header(raw: bytes, *, where: str) -> Header:
    """The inverse of `header`. Raises LedgerError for what is no ledger, of a newer version, or was changed."""
    if raw[: len(MAGIC)] != MAGIC[: len(raw)]:
        raise LedgerError(f"{where} is no ledger: it begins with {raw[:8]!r}, expected {MAGIC!r}")
    if len(raw) < HEADER.size:
        raise LedgerError(f"{where} ends inside its header, at byte {len(raw)} of {HEADER.size}; it holds no record")
    _, version, rank, ranks, previous, digest = HEADER.unpack(raw)
    if version != VERSION:
        raise LedgerError(f"{where} is a ledger of version {version}, this reads {VERSION}; use a newer golf-audit")
    if digest != hashed("header", raw[:-DIGEST_BYTES]) or not rank < ranks:
        raise LedgerError(f"{where}: the header (rank {rank} of {ranks}) and its digest differ; it was changed")
    return Header(rank, ranks, previous, digest)


# Blocks


def pack(head: bytes, index: int, records: int, facts: bytes, clock: bytes) -> tuple[bytes, bytes]:
    """A block that follows on `head`, and its digest, which is the new head. Raises LedgerError if it is too large."""
    if max(len(facts), len(clock)) > MOST_PLAIN_BYTES:
        raise LedgerError(f"block {index} has {len(facts)} bytes, the limit is {MOST_PLAIN_BYTES}; record less at once")
    stored, ticks = zlib.compress(facts, 1), zlib.compress(clock, 1)
    lengths = struct.pack("<6I", index, records, len(stored), len(facts), len(ticks), len(clock))
    digest = hashed("block", head, lengths, stored, ticks)
    return BLOCK_MAGIC + lengths + _check(head, lengths) + digest + stored + ticks, digest


def _check(head: bytes, lengths: bytes) -> bytes:
    """Eight bytes by which lengths are trusted before what they measure is read: a torn block is no changed one."""
    return hashed("lengths", head, lengths)[:CHECK_BYTES]


class Head(NamedTuple):
    """The head of a block that follows on the one before: its lengths can be trusted, its content is still unread."""

    lengths: Lengths
    packed: bytes
    digest: bytes


def read_head(stream: BinaryIO, head: bytes, index: int, *, where: str) -> Head | None:
    """The head of block `index`; None where the stream ends before it or inside it.

    Raises LedgerError for a block that does not follow on `head`, the digest of the one before.
    """
    raw = stream.read(BLOCK.size)
    expected = BLOCK_MAGIC + struct.pack("<I", index)
    if raw[: len(expected)] != expected[: len(raw)]:
        raise LedgerError(f"{where}: got {raw[:8].hex()}, expected {expected.hex()}; blocks were moved, cut or added")
    if len(raw) < BLOCK.size:
        return None
    _, *sizes, check, digest = BLOCK.unpack(raw)
    packed = raw[len(BLOCK_MAGIC) : -CHECK_BYTES - DIGEST_BYTES]
    if check != _check(head, packed):
        raise LedgerError(f"{where}: it does not follow on what comes before it; one of the two was changed")
    lengths = Lengths(*sizes)
    if not 0 < lengths.records <= MOST_BLOCK_RECORDS or max(lengths[2:]) > MOST_PLAIN_BYTES:
        raise LedgerError(
            f"{where}: got {lengths.records} records and {max(lengths[2:])} bytes, expected 1 to {MOST_BLOCK_RECORDS} "
            f"and at most {MOST_PLAIN_BYTES}; it was not written by the recorder"
        )
    return Head(lengths, packed, digest)


def read_parts(stream: BinaryIO, head: bytes, block: Head, *, where: str) -> tuple[bytes, bytes] | None:
    """The plain parts, facts and clock, of the block whose head was just read; None where the stream ends inside it.

    Raises LedgerError where the content is not that of the block's digest, or can't be unpacked.
    """
    lengths = block.lengths
    stored, ticks = stream.read(lengths.facts_stored), stream.read(lengths.clock_stored)
    if len(stored) < lengths.facts_stored or len(ticks) < lengths.clock_stored:
        return None
    found = hashed("block", head, block.packed, stored, ticks)
    if found != block.digest:
        raise LedgerError(f"{where}: content is {text(found)}, the block says {text(block.digest)}; it was changed")
    return _unpack(stored, lengths.facts_plain, where), _unpack(ticks, lengths.clock_plain, where)


def _unpack(stored: bytes, size: int, where: str) -> bytes:
    """zlib's inverse, never more than `size` bytes, and exactly one stream."""
    inflate = zlib.decompressobj()
    try:
        plain = inflate.decompress(stored, size + 1)
    except zlib.error as cause:
        raise LedgerError(f"{where}: can't be unpacked ({cause}); it was not written by the recorder") from None
    if len(plain) != size or not inflate.eof or inflate.unused_data:
        raise LedgerError(
            f"{where}: unpacks to {len(plain)} bytes or more, expected {size} and no others; it was not written by the "
            "recorder"
        )
    return plain


# What stands in a block


def encode(records: Sequence[Record]) -> tuple[bytes, bytes]:
    """The two plain parts of a block of these records, facts and clock. `decode` is the inverse."""
    kinds = np.array([record.kind for record in records], dtype=np.uint8)
    clock = np.array([record.now for record in records], dtype="<i8")
    by_kind: list[list[Record]] = [[] for _ in KINDS]
    for record in records:
        by_kind[record.kind].append(record)
    parts = [kinds.tobytes()]
    for kind, own in zip(KINDS[1:], by_kind[1:], strict=True):
        if own:
            parts += _columns([record.row for record in own], STORED[kind])
        if own and kind in LISTS:
            parts += _columns([record.listed for record in own], LISTS[kind][1])
    notes = [record.note for record in by_kind[0]]
    facts, ticks = (b"[" + b",".join(texts) + b"]" for texts in (zip(*notes, strict=True) if notes else ((), ())))
    return b"".join([*parts, facts]), clock.tobytes() + ticks


def _columns(rows: Sequence[bytes], dtype: np.dtype[Any]) -> list[bytes]:
    table = np.frombuffer(b"".join(rows), dtype)
    return [table[name].tobytes() for name in dtype.names or ()]


def decode(facts: bytes, clock: bytes, *, count: int, index: int, first: int, where: str) -> Block:
    """The inverse of `encode` for `count` records from number `first` on. Raises LedgerError for anything else."""
    cursor, ticks = _Cursor(facts, where), _Cursor(clock, where)
    kinds = cursor.take(np.dtype("u1"), count)
    if kinds.max() >= len(KINDS):
        at = int(np.argmax(kinds >= len(KINDS)))
        raise LedgerError(f"{where}: record {first + at} is of kind {kinds[at]}, expected below {len(KINDS)}")
    tables: dict[str, np.ndarray] = {}
    for code, kind in enumerate(KINDS[1:], start=1):
        at_records = first + np.flatnonzero(kinds == code)
        tables |= _decode_kind(cursor, kind, at_records) if len(at_records) else _empty(kind)
    times = ticks.take(np.dtype("<i8"), count)
    if times.min() < 0:
        raise LedgerError(
            f"{where}: record {first + int(np.argmin(times))} is of time {times.min()}, expected 0 or more"
        )
    places = (first + np.flatnonzero(kinds == 0)).tolist()
    rows = zip(places, cursor.notes(len(places)), ticks.notes(len(places)), strict=True)
    notes = tuple(_note(at, row, volatile, where) for at, row, volatile in rows)
    return Block(index=index, first=first, kinds=kinds, clock=times, notes=notes, **tables)


class _Cursor:
    """Takes arrays off the front of bytes, never past their end, and the notes that are the rest."""

    def __init__(self, content: bytes, where: str) -> None:
        self.content, self.where, self.place = content, where, 0

    def require(self, size: int) -> None:
        """Raise LedgerError unless so many bytes are left."""
        if size > len(self.content) - self.place:
            raise LedgerError(
                f"{self.where}: {size} bytes are due, {len(self.content) - self.place} are left; it was not written by "
                "the recorder"
            )

    def take(self, dtype: np.dtype[Any], count: int) -> np.ndarray:
        self.require(dtype.itemsize * count)
        found = np.frombuffer(self.content, dtype, count, self.place)
        self.place += dtype.itemsize * count
        return found

    def notes(self, count: int) -> list[Any]:
        raw = self.content[self.place :]
        rows = from_json(raw) if len(raw) <= MOST_JSON_BYTES else None
        if not isinstance(rows, list) or len(rows) != count:
            raise LedgerError(
                f"{self.where}: the last {len(raw)} bytes are not the JSON of {count} notes, keys sorted, no spaces, "
                f"of at most {MOST_JSON_BYTES} bytes; it was not written by the recorder"
            )
        return rows


def _decode_kind(cursor: _Cursor, kind: str, at: np.ndarray) -> dict[str, np.ndarray]:
    """The table of a kind and that of its list, for the records numbered `at`, int64 [n], of which there are some."""
    cursor.require(STORED[kind].itemsize * len(at))
    table = np.empty(len(at), dtype=loaded(kind))
    table["at"] = at
    _fill(cursor, table, STORED[kind])
    found = {TABLES[kind]: table}
    if kind in LISTS:
        name, dtype = LISTS[kind]
        # Counts are 32 bits and records at most 2^16, so the sum is below 2^48.
        ends = np.cumsum(table["count"], dtype=np.int64)
        table["offset"] = ends - table["count"]
        cursor.require(dtype.itemsize * int(ends[-1]))
        found[name] = _fill(cursor, np.empty(int(ends[-1]), dtype=dtype), dtype)
    _check_values(cursor.where, kind, table)
    for array in found.values():
        array.flags.writeable = False
    return found


@functools.cache
def _empty(kind: str) -> dict[str, np.ndarray]:
    tables = {TABLES[kind]: np.empty(0, dtype=loaded(kind))}
    if kind in LISTS:
        name, dtype = LISTS[kind]
        tables[name] = np.empty(0, dtype=dtype)
    for array in tables.values():
        array.flags.writeable = False
    return tables


def _fill(cursor: _Cursor, table: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Take the columns of `dtype` off the cursor into `table`, whose rows the cursor is known to hold."""
    for name in dtype.names or ():
        table[name] = cursor.take(dtype[name], len(table))
    return table


def _check_values(where: str, kind: str, table: np.ndarray) -> None:
    """Flags are 0 or 1, names what `name_bytes` gives. Raises LedgerError with the record."""
    if kind in FLAGS and (wrong := np.flatnonzero(table[FLAGS[kind]] > 1)).size:
        row = table[wrong[0]]
        raise LedgerError(
            f"{where}: {FLAGS[kind]} of record {row['at']} is {row[FLAGS[kind]]}, expected 0 or 1; it was not written "
            "by the recorder"
        )
    if kind in NAMES:
        column = np.ascontiguousarray(table[NAMES[kind]])
        raws = column.view(f"V{column.dtype.itemsize}").tolist()
        for raw in set(raws):
            if not is_name(raw):
                raise LedgerError(
                    f"{where}: {NAMES[kind]} of record {table['at'][raws.index(raw)]} is {raw!r}, expected a name in "
                    "UTF-8; it was not written by the recorder"
                )


def _note(at: int, row: Any, clock: Any, where: str) -> Note:
    match row:
        case [str(name), dict(facts)] if isinstance(clock, dict):
            return Note(at, name, facts, clock)
    raise LedgerError(f"{where}: record {at} is no note of a name and facts; it was not written by the recorder")
