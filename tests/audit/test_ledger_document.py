"""docs/ledger.md is enough: a reader made from its tables alone, with the standard library, reads what we write."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from audit import blocks, ledger, records
from audit.errors import LedgerError
from tests.audit.forgery import Plain, create, plain, take_apart, write_records, write_small
from tests.audit.goldens import make

TEXT = (Path(__file__).parents[2] / "docs/ledger.md").read_text()
FORMATS = {
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "i8": "q",
    "f8": "d",
    "S16": "16s",
    "S64": "64s",
    "32 bytes": "32s",
}

Columns = list[tuple[str, str]]


def tables() -> list[tuple[str, Columns, Columns]]:
    """Kind by kind from the document: its name, its columns, its list's, as (name, format of `struct`)."""
    found = re.findall(r"^\| (\d) \| (\w+) \| (.*?) \| (.*?) ?\|$", TEXT, flags=re.MULTILINE)
    assert [int(code) for code, *_ in found] == list(range(8))
    return [(name, columns(row), columns(listed)) for _, name, row, listed in found]


def columns(cell: str) -> Columns:
    parts = re.findall(r"(\w+) (?:`(\w+)`|(32 bytes))", cell)
    return [(name, FORMATS[form or digest]) for name, form, digest in parts]


def digest(domain: str, *parts: bytes) -> bytes:
    return hashlib.sha256(f"golf-audit ledger {domain} 1\n".encode() + b"".join(parts)).digest()


class Bytes:
    """Bytes that are taken from the front."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def take(self, form: str, count: int) -> list[Any]:
        layout = struct.Struct("<" + form * count)
        self.place += layout.size
        return list(layout.unpack_from(self.content, self.place - layout.size))

    def rest(self) -> Any:
        return json.loads(self.content[self.place :])


def read(path: Path) -> tuple[list[Plain], dict[str, Any]]:
    """The records of a ledger, and its header, head and clockless digest, by the document."""
    content = path.read_bytes()
    magic, version, rank, ranks, previous, head = struct.unpack_from("<8sIII32s32s", content)
    assert (magic, version, head) == (b"GOLFLEDG", 1, digest("header", content[:52]))
    clockless, place, number, found = digest("clockless", struct.pack("<II", rank, ranks)), 84, 0, []
    while place < len(content):
        mark, index, count, *sizes = struct.unpack_from("<4s6I", content, place)
        lengths, check, own = (
            content[place + 4 : place + 28],
            content[place + 28 : place + 36],
            content[place + 36 : place + 68],
        )
        facts, clock = content[place + 68 :][: sizes[0]], content[place + 68 + sizes[0] :][: sizes[2]]
        assert (mark, index, check) == (b"BLCK", number, digest("lengths", head, lengths)[:8])
        assert own == digest("block", head, lengths, facts, clock)
        head, number, place = own, number + 1, place + 68 + sizes[0] + sizes[2]
        clockless = digest("clockless", clockless, zlib.decompress(facts))
        found += block(Bytes(zlib.decompress(facts)), Bytes(zlib.decompress(clock)), count)
    return found, {"rank": rank, "ranks": ranks, "previous": previous, "head": head, "clockless": clockless}


def block(facts: Bytes, clock: Bytes, count: int) -> list[Plain]:
    """The records of one block."""
    kinds, times = facts.take("B", count), clock.take("q", count)
    rows = {code: kind_rows(facts, kinds.count(code), *tables()[code][1:]) for code in range(1, 8) if code in kinds}
    notes = [({"name": name, "facts": about}, []) for name, about in facts.rest()]
    for (values, _), volatile in zip(notes, clock.rest(), strict=True):
        values["clock"] = volatile
    streams = {code: iter(found) for code, found in (rows | {0: notes}).items()}
    return [(tables()[code][0], now, *next(streams[code])) for code, now in zip(kinds, times, strict=True)]


def kind_rows(facts: Bytes, count: int, own: Columns, listed: Columns) -> list[tuple[dict[str, Any], list[Any]]]:
    """The records of a kind, each with the rows of its list."""
    values = {name: facts.take(form, count) for name, form in own}
    counts = values.pop("count", [0] * count)
    lists = list(zip(*(facts.take(form, sum(counts)) for _, form in listed), strict=True))
    ends = [sum(counts[: i + 1]) for i in range(count)]
    return [
        ({name: value(name, column[i]) for name, column in values.items()}, lists[ends[i] - counts[i] : ends[i]])
        for i in range(count)
    ]


def value(name: str, found: Any) -> Any:
    """Names without the NULs that fill them up, digests as numbers."""
    if name == "digest":
        return list(found)
    return found.rstrip(b"\0") if isinstance(found, bytes) else found


@pytest.mark.parametrize("path", sorted(make.FOLDER.glob("*.ledger")), ids=lambda path: path.stem)
def test_a_reader_made_from_the_document_reads_the_golden(path: Path) -> None:
    """Every record, and both digests, as our own reader has them."""
    found, about = read(path)
    ending = ledger.check(path)
    assert found == plain(path)
    assert (about["head"], about["clockless"]) == (ending.head, ending.clockless)
    assert (about["rank"], about["ranks"], about["previous"]) == (ending.rank, ending.ranks, ending.previous)


def test_it_reads_many_blocks(tmp_path: Path) -> None:
    """Blocks of two records, and one of many."""
    for every in (2, 3, 100):
        path = write_small(tmp_path / f"{every}.ledger", every=every)
        assert read(path)[0] == plain(path)


def test_the_document_has_our_columns() -> None:
    """Names and order of all kinds and columns are those of `audit.records`."""
    for (name, own, listed), kind in zip(tables(), records.KINDS, strict=True):
        assert name == kind
        if kind != "note":
            assert [column for column, _ in own] == list(records.STORED[kind].names or ())
            assert [column for column, _ in listed] == list(
                records.LISTS[kind][1].names or () if kind in records.LISTS else ()
            )


def test_the_document_has_our_limits() -> None:
    """The numbers in it are those of the code."""
    for number, words in (
        (blocks.HEADER.size, "Header, {} bytes"),
        (blocks.BLOCK.size, "Block, {} bytes"),
        (blocks.MOST_BLOCK_RECORDS, "1 to {}"),
        (blocks.MOST_PLAIN_BYTES >> 20, "above {} MiB"),
        (blocks.MOST_JSON_BYTES >> 20, "At most {} MiB"),
        (records.MOST_NOTE_BYTES >> 10, "at most {} KiB of JSON"),
        (records.MOST_ROWS, "at most {} rows"),
        (ledger.MOST_RECORDS, "at {} records"),
        (ledger.MOST_LISTED, "{} rows or 256 KiB"),
    ):
        assert words.format(f"{number:,}") in " ".join(TEXT.split())


def test_the_seal_of_a_stage_is_as_documented(tmp_path: Path) -> None:
    """One digest over the heads of all ranks, which the next stage carries."""
    for rank in range(2):
        write_small(tmp_path / f"rank{rank}.ledger", rank=rank, ranks=2)
    heads = [read(tmp_path / f"rank{rank}.ledger")[1]["head"] for rank in range(2)]
    assert ledger.seal_of(tmp_path) == digest("seal", struct.pack("<I", 2), *heads)


def test_a_torn_block_is_told_as_documented(tmp_path: Path) -> None:
    """Where the check at 28 holds and the file ends too soon the block is torn; with a changed length it is refused."""
    writer = create(tmp_path / "rank0.ledger")
    write_records(writer)
    writer.flush()
    writer.close()
    content = writer.path.read_bytes()
    writer.path.write_bytes(content[:-1])
    assert ledger.check(writer.path).torn_bytes == len(content) - 84 - 1
    longer = content[: 84 + 12] + struct.pack("<I", len(content)) + content[84 + 16 :]
    writer.path.write_bytes(longer)
    with pytest.raises(LedgerError, match="does not follow"):
        ledger.check(writer.path)
    assert take_apart(make.FOLDER / "v1.ledger").header[:8] == b"GOLFLEDG"
