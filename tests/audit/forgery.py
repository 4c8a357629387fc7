"""Small ledgers to write, take apart, edit and write again: the tools of whoever forges a run.

write_small(path)                        a sealed ledger with every kind of record, in blocks of three
take_apart(path)                         its header, and its blocks as bytes and as records
forge(path, header, blocks)              a ledger of other records that chains and seals like an honest one
replace_block(taken, 2, records)         the file with one block's content changed, and nothing after it
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audit import blocks, ledger, records
from audit.records import KINDS, LISTS, STORED, TABLES, Block, Record

Records = Sequence[Record]


def sequences(*places: tuple[int, int]) -> np.ndarray:
    """The list of a draw: (shard, start) of each row."""
    return np.array(list(places), dtype=LISTS["draw"][1])


def windows(*rows: tuple[int, int, float, int]) -> np.ndarray:
    """The list of a score: (begin, scored, nats, octets) of each window."""
    return np.array(list(rows), dtype=LISTS["score"][1])


def create(path: Path, **settings: Any) -> ledger.Writer:
    return ledger.Writer.create(path, **({"rank": 0, "ranks": 1} | settings))


def blocks_of(path: Path) -> list[Block]:
    return list(ledger.Ledger.open(path).blocks())


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def write_records(writer: ledger.Writer) -> None:
    """One step of a tiny run: every kind of record, and every way to be of two lengths."""
    writer.note("run", {"stage": "train", "seed": 7, "length": 4}, {"host": "here"}, now=1)
    writer.draw(0, "train", sequences((0, 3), (2, 9)), digest=digest("a"), checksum=5, length=4, now=2)
    writer.forward(checksum=5, tokens=8, grad=True, now=3)
    writer.step(0, (0,), lr=0.5, looped=False, collectives=3, now=4)
    writer.update(optimizer=0, before=2**64 - 1, after=11, now=5)
    writer.note("phase", {"name": "Prüfung"}, now=6)
    writer.state(parameters=11, now=7)
    writer.score(
        "after the step",
        windows((0, 4, 2.5, 9), (4, 4, -0.0, 0)),
        counted=True,
        collectives=4,
        length=4,
        digest=digest("b"),
        checksum=6,
        parameters=11,
        now=8,
    )
    writer.draw(-1, "self", sequences((1, 1)), digest=digest("c"), checksum=7, origin=1, now=9)
    writer.calibration((-1,), collectives=5, now=10)


def write_small(path: Path, *, rank: int = 0, ranks: int = 1, previous: bytes = ledger.NO_SEAL, every: int = 3) -> Path:
    """A sealed ledger of eleven records in blocks of `every`; its clock is fixed but for the seal's."""
    writer = ledger.Writer.create(path, rank=rank, ranks=ranks, previous=previous)
    most, ledger.MOST_RECORDS = ledger.MOST_RECORDS, every
    try:
        write_records(writer)
        writer.seal({"artifact": None, "ended": "announced"}, {"seconds": 1.5})
    finally:
        ledger.MOST_RECORDS = most
    return path


Plain = tuple[str, int, dict[str, Any], list[tuple[Any, ...]]]
"""A record as plain values: kind, time, columns, rows of its list. A note has its name and both facts as columns."""


def plain(path: Path) -> list[Plain]:
    """The records of a ledger, in order."""
    found: dict[int, tuple[str, dict[str, Any], list[tuple[Any, ...]]]] = {}
    clock: list[int] = []
    for block in blocks_of(path):
        assert (block.first, len(block)) == (len(clock), len(block.clock))
        clock += block.clock.tolist()
        for note in block.notes:
            found[note.at] = "note", {"name": note.name, "facts": note.facts, "clock": note.clock}, []
        for kind, dtype in STORED.items():
            for row in getattr(block, TABLES[kind]):
                values = {name: row[name].tolist() for name in dtype.names or () if name != "count"}
                rows = []
                if kind in LISTS:
                    rows = getattr(block, LISTS[kind][0])[row["offset"] : row["offset"] + row["count"]].tolist()
                found[int(row["at"])] = kind, values, rows
    return [(found[i][0], now, *found[i][1:]) for i, now in enumerate(clock)]


def records_of(block: Block) -> list[Record]:
    """The records of a block as they were before they became one."""
    found = {
        n.at: Record(0, 0, note=(records.to_json([n.name, n.facts]), records.to_json(n.clock))) for n in block.notes
    }
    for kind, dtype in STORED.items():
        table = getattr(block, TABLES[kind])
        rows = np.empty(len(table), dtype)
        for name in dtype.names or ():
            rows[name] = table[name]
        for row, full in zip(rows, table, strict=True):
            listed = b""
            if kind in LISTS:
                listed = getattr(block, LISTS[kind][0])[full["offset"] : full["offset"] + full["count"]].tobytes()
            found[int(full["at"])] = Record(KINDS.index(kind), 0, row.tobytes(), listed)
    return [found[block.first + i]._replace(now=int(now)) for i, now in enumerate(block.clock)]


@dataclass(frozen=True)
class Taken:
    """A ledger taken apart: its header, each block's bytes, and each block's records."""

    header: bytes
    raw: tuple[bytes, ...]
    records: tuple[list[Record], ...]

    def block_at(self, offset: int) -> int | None:
        """The block that a byte of the file lies in, None for the header."""
        ends = np.cumsum([len(self.header), *(len(block) for block in self.raw)])
        block = int(np.searchsorted(ends, offset, side="right")) - 1
        return None if block < 0 else block

    def first(self, block: int) -> int:
        """The number of a block's first record."""
        return sum(len(part) for part in self.records[:block])


def take_apart(path: Path) -> Taken:
    """Header, blocks and records of a ledger that holds."""
    content, found = path.read_bytes(), [records_of(block) for block in ledger.Ledger.open(path).blocks()]
    place, raw = blocks.HEADER.size, []
    for _ in found:
        sizes = struct.unpack_from("<6I", content, place + 4)
        end = place + blocks.BLOCK.size + sizes[2] + sizes[4]
        raw.append(content[place:end])
        place = end
    return Taken(content[: blocks.HEADER.size], tuple(raw), tuple(found))


def chained(header: bytes, parts: Sequence[Records]) -> list[bytes]:
    """Blocks of these records, chained from this header on as the recorder would."""
    head, found = blocks.parse_header(header, where="here").head, []
    for index, part in enumerate(parts):
        raw, head = blocks.pack(head, index, len(part), *blocks.encode(part))
        found.append(raw)
    return found


def forge(path: Path, header: bytes, parts: Sequence[Records]) -> Path:
    """Write a ledger of any records that is consistent in itself."""
    path.write_bytes(header + b"".join(chained(header, [part for part in parts if part])))
    return path


def replace_block(taken: Taken, index: int, edited: Records, *, digested: bool) -> bytes:
    """The file with the records of one block replaced and the other blocks' bytes as they were.

    `digested`: the block's lengths and digest fit its new content, as far as the block before goes; else the digest
    stays the old one.
    """
    rechained = chained(taken.header, [*taken.records[:index], edited])[-1]
    if not digested:
        at = blocks.BLOCK.size - records.DIGEST_BYTES
        old = taken.raw[index][at : blocks.BLOCK.size]
        rechained = rechained[:at] + old + rechained[blocks.BLOCK.size :]
    return taken.header + b"".join([*taken.raw[:index], rechained, *taken.raw[index + 1 :]])
