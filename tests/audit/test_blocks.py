"""Blocks: one encoding of a content, every byte of it used, every length checked before anything is allocated."""

from __future__ import annotations

import gc
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from audit import blocks, ledger, records
from audit.errors import LedgerError
from audit.ledger import Ledger, check
from audit.records import FLAGS, KINDS, NAMES, STORED, Record
from tests.audit.forgery import forge, records_of, take_apart, write_small

HEADER = blocks.header(rank=0, ranks=1, previous=ledger.NO_SEAL)
HEAD = blocks.parse_header(HEADER, where="here").head


def edited(path: Path, kind: str, change: Callable[[np.ndarray], object]) -> list[Record]:
    """The records of a small ledger, the first of a kind changed as a row of its table."""
    found = [record for part in take_apart(write_small(path)).records for record in part]
    at = next(i for i, record in enumerate(found) if record.kind == KINDS.index(kind))
    row = np.frombuffer(bytearray(found[at].row), STORED[kind])
    change(row)
    found[at] = found[at]._replace(row=row.tobytes())
    return found


def refuses(tmp_path: Path, parts: Sequence[Sequence[Record]], says: str) -> None:
    """A ledger of these records, chained and sealed as if by the recorder, is refused with these words."""
    path = forge(tmp_path / "forged", HEADER, parts)
    with pytest.raises(LedgerError, match=says):
        check(path)


@pytest.mark.parametrize("kind", list(FLAGS))
def test_a_flag_is_0_or_1(tmp_path: Path, kind: str) -> None:
    """Whatever else a flag's byte says has a second meaning for somebody, so it is refused, with the record."""
    found = edited(tmp_path / "honest", kind, lambda row: row.__setitem__(FLAGS[kind], 2))
    number = next(i for i, record in enumerate(found) if record.kind == KINDS.index(kind))
    refuses(tmp_path, [found], f"{FLAGS[kind]} of record {number} is 2")


@pytest.mark.parametrize("kind", list(NAMES))
@pytest.mark.parametrize("name", [b"", b"a\0b", b"\xff", b"\0a"])
def test_a_name_is_one_name(tmp_path: Path, kind: str, name: bytes) -> None:
    """Names are UTF-8, not empty, and have no NUL inside, where two readers could disagree on their end."""

    def rename(row: np.ndarray) -> None:
        row.view(np.uint8)[list_offset : list_offset + size] = np.frombuffer(name.ljust(size, b"\0"), np.uint8)

    fields = STORED[kind].fields
    assert fields is not None
    list_offset, size = fields[NAMES[kind]][1], STORED[kind][NAMES[kind]].itemsize
    refuses(tmp_path, [edited(tmp_path / "honest", kind, rename)], f"{NAMES[kind]} of record")


@pytest.mark.parametrize(
    ("note", "says"),
    [
        ((b'["a", {}]', b"{}"), "the JSON of 1 notes"),
        ((b'["a",{"b":1,"b":1}]', b"{}"), "the JSON of 1 notes"),
        ((b'["a",{"b":NaN}]', b"{}"), "the JSON of 1 notes"),
        ((b'["a",{"b":1.00}]', b"{}"), "the JSON of 1 notes"),
        ((b'["a",{"b":"\\u0041"}]', b"{}"), "the JSON of 1 notes"),
        ((b'["a",{"b":"\xff"}]', b"{}"), "the JSON of 1 notes"),
        ((b'["a",{}],["b",{}]', b"{},{}"), "the JSON of 1 notes"),
        ((b"[" * 100_000, b"{}"), "the JSON of 1 notes"),
        ((b'["a",{"b":' + b"9" * 5000 + b"}]", b"{}"), "the JSON of 1 notes"),
        ((b'["a",{}]', b"{ }"), "the JSON of 1 notes"),
        ((b'["a",{}]', b"[]"), "record 0 is no note"),
        ((b'["a",[]]', b"{}"), "record 0 is no note"),
        ((b"[1,{}]", b"{}"), "record 0 is no note"),
        ((b'{"a":{}}', b"{}"), "record 0 is no note"),
    ],
)
def test_a_note_has_one_text(tmp_path: Path, note: tuple[bytes, bytes], says: str) -> None:
    """JSON that the writer would have written otherwise is refused: no spaces, doubled keys, other digits."""
    refuses(tmp_path, [[Record(0, 1, note=note)]], says)


def test_a_seal_ends_a_ledger(tmp_path: Path) -> None:
    """A record after the seal, in its block or behind it, is refused even if everything chains."""
    seal, state = records.note("seal", {}, {}, 1), records.record("state", 1, (1,))
    refuses(tmp_path, [[seal, state]], "records follow the seal, record 0")
    refuses(tmp_path, [[seal], [state]], "something follows the seal, record 0")


def test_times_are_not_negative(tmp_path: Path) -> None:
    """A time before the ledger began was not written by the recorder."""
    refuses(tmp_path, [[records.record("state", -1, (1,))]], "record 0 is of time -1")


def block_of(path: Path, facts: bytes, clock: bytes, count: int) -> Path:
    """A ledger of one block with these plain parts."""
    path.write_bytes(HEADER + blocks.pack(HEAD, 0, count, facts, clock)[0])
    return path


def test_a_kind_is_known(tmp_path: Path) -> None:
    """A record of a kind that this version has not is refused, with its number."""
    facts, clock = blocks.encode([records.record("state", 1, (1,))] * 2)
    with pytest.raises(LedgerError, match="record 1 is of kind 8, expected below 8"):
        check(block_of(tmp_path / "rank0.ledger", b"\6\x08" + facts[2:], clock, 2))


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("change", [lambda plain: plain + b"\0", lambda plain: plain[:-1], lambda plain: b""])
def test_no_byte_is_left_over(tmp_path: Path, part: int, change: Callable[[bytes], bytes]) -> None:
    """Both parts of a block are used to their last byte."""
    parts = list(blocks.encode([records.record("state", 1, (1,))]))
    parts[part] = change(parts[part])
    with pytest.raises(LedgerError, match="records 0 to 0"):
        check(block_of(tmp_path / "rank0.ledger", parts[0], parts[1], 1))


def test_a_block_that_no_reader_would_take_is_not_packed() -> None:
    """The writer's limit is the reader's."""
    with pytest.raises(LedgerError, match="record less at once"):
        blocks.pack(HEAD, 0, 1, bytes(blocks.MOST_PLAIN_BYTES + 1), b"")


def test_what_decodes_is_what_would_have_been_written(tmp_path: Path) -> None:
    """`decode` and `encode` are inverse on every block of a small ledger."""
    for block in Ledger.open(write_small(tmp_path / "rank0.ledger")).blocks():
        found = records_of(block)
        facts, clock = blocks.encode(found)
        again = blocks.decode(facts, clock, count=len(found), index=block.index, first=block.first, where="here")
        assert records_of(again) == found


# Hostile sizes


def hostile(path: Path, facts: bytes, clock: bytes, **lies: int) -> Path:
    """A ledger of one block of these packed parts, whose head lies about its sizes, and chains."""
    lengths = blocks.Lengths(0, 1, len(facts), 0, len(clock), 0)._replace(**lies)
    packed = struct.pack("<6I", *lengths)
    check_bytes, found = blocks._check(HEAD, packed), blocks.hashed("block", HEAD, packed, facts, clock)
    path.write_bytes(HEADER + blocks.BLOCK_MAGIC + packed + check_bytes + found + facts + clock)
    return path


def bombs(folder: Path) -> dict[str, Path]:
    """Ledgers that promise much and hold little."""
    most, ticks = blocks.MOST_PLAIN_BYTES, struct.pack("<q", 1) + b"[]"
    draw = draw_of(0)
    note, dicts = b'\0[["a",{}]]', bytes(8) + b"[" + b"{}," * (most // 3 - 10) + b"{}]"
    plain: dict[str, tuple[bytes, bytes, dict[str, int]]] = {
        "records": (draw, ticks, {"records": 2**32 - 1}),
        "plain bytes": (draw, ticks, {"facts_plain": 2**32 - 1}),
        "packed bytes": (draw, ticks, {"facts_stored": 2**32 - 1}),
        "zeros, more than promised": (bytes(8 * most), ticks, {"facts_plain": 100}),
        "zeros, as promised": (bytes(most), ticks, {"facts_plain": most, "records": blocks.MOST_BLOCK_RECORDS}),
        "a draw of 2^32 rows": (draw_of(2**32 - 1), ticks, {}),
        "2^16 draws of 2^32 rows": (draw_of(2**32 - 1, 2**16), bytes(8 * 2**16) + b"[]", {"records": 2**16}),
        "notes": (note, dicts, {}),
    }
    found = {}
    for name, (facts, clock, lies) in plain.items():
        sizes = {"facts_plain": len(facts), "clock_plain": len(clock)}
        found[name] = hostile(folder / name, zlib.compress(facts), zlib.compress(clock), **(sizes | lies))
    return found


def draw_of(rows: int, records: int = 1) -> bytes:
    """Facts of draws that claim so many rows each and have none."""
    table = np.zeros(records, STORED["draw"])
    table["split"], table["count"] = b"train", rows
    return b"\1" * records + b"".join(table[name].tobytes() for name in STORED["draw"].names or ()) + b"[]"


def test_a_hostile_block_allocates_little(tmp_path: Path) -> None:
    """Whatever a block promises, less than 64 MiB are taken before it is refused, with its records."""
    for name, path in bombs(tmp_path).items():
        gc.collect()
        tracemalloc.start()
        with pytest.raises(LedgerError, match=r"block 0, (from record 0 on|records 0 to \d+)") as caught:
            check(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 * 2**20, (name, peak, str(caught.value))


@pytest.mark.parametrize(
    "change", [lambda packed: packed + b"\0", lambda packed: packed * 2, lambda packed: packed[:-4]]
)
@pytest.mark.parametrize("part", [0, 1])
def test_a_part_is_one_whole_zlib_stream(tmp_path: Path, change: Callable[[bytes], bytes], part: int) -> None:
    """Bytes behind the stream, a second one, a missing checksum at its end: refused, though all content is there."""
    plain = blocks.encode([records.record("state", 1, (1,))])
    packed = [zlib.compress(content) for content in plain]
    sizes = {"facts_plain": len(plain[0]), "clock_plain": len(plain[1])}
    assert check(hostile(tmp_path / "honest", *packed, **sizes)).records == 1
    packed[part] = change(packed[part])
    with pytest.raises(LedgerError, match=r"records 0 to 0: unpacks to \d+ bytes"):
        check(hostile(tmp_path / "rank0.ledger", *packed, **sizes))


@pytest.mark.parametrize("count", [0, blocks.MOST_BLOCK_RECORDS + 1])
def test_a_block_has_records_and_not_too_many(tmp_path: Path, count: int) -> None:
    """An empty block, or one of more than 65,536 records, was not written by the recorder."""
    facts, clock = b"\6" * count + bytes(8 * count) + b"[]", bytes(8 * count) + b"[]"
    with pytest.raises(LedgerError, match=f"got {count} records"):
        check(block_of(tmp_path / "rank0.ledger", facts, clock, count))
