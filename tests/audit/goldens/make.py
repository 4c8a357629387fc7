"""One small ledger of every version, with what it says: `python -m tests.audit.goldens.make` adds this version's.

A golden that is there is never written over: it stands for the files that people have. Its bytes depend on the zlib
that packed it, its plain parts on nothing but the format.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

from audit import blocks, ledger
from audit.errors import LedgerError
from audit.records import LISTS, TABLES
from tests.audit.forgery import digest, write_records

FOLDER = Path(__file__).parent


def write(path: Path) -> Path:
    """Two blocks of a tiny run, the second one sealed, with every kind of record and a fixed clock."""
    writer = ledger.Writer.create(path, rank=1, ranks=2, previous=digest("the stage before"))
    write_records(writer)
    writer.flush()
    write_records(writer)
    # The seal's time is the only one that can't be given.
    writer.now = lambda: 99  # type: ignore[method-assign]
    writer.seal({"artifact": None, "ended": "announced"}, {"seconds": 1.5})
    return path


def readable(path: Path) -> dict[str, Any]:
    """Everything that a ledger says, as JSON values."""
    book = ledger.Ledger.open(path)
    found: dict[str, Any] = {"rank": book.rank, "ranks": book.ranks, "previous": ledger.text(book.previous)}
    found["blocks"] = [_readable_block(block) for block in book.blocks()]
    assert book.ending is not None
    ending = {"head": ledger.text(book.ending.head), "clockless": ledger.text(book.ending.clockless)}
    return json.loads(json.dumps(found | ending | {"seal": book.ending.seal}))  # type: ignore[no-any-return]


def _readable_block(block: Any) -> dict[str, Any]:
    names = [*TABLES.values(), *(name for name, _ in LISTS.values())]
    tables = {name: [[_plain(value) for value in row] for row in getattr(block, name)] for name in names}
    notes = [[note.at, note.name, note.facts, note.clock] for note in block.notes]
    return {"first": block.first, "kinds": block.kinds.tolist(), "clock": block.clock.tolist(), "notes": notes} | tables


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value.tolist() if hasattr(value, "tolist") and not isinstance(value, bytes) else value


def plain_parts(path: Path) -> list[bytes]:
    """Header and unpacked parts of each block, read by their offsets alone."""
    content, place = path.read_bytes(), blocks.HEADER.size
    found = [content[:place]]
    while place < len(content):
        _, _, stored, _, ticks, _ = struct.unpack_from("<6I", content, place + 4)
        place += blocks.BLOCK.size
        found += [zlib.decompress(content[place : place + stored])]
        found += [zlib.decompress(content[place + stored : place + stored + ticks])]
        place += stored + ticks
    return found


if __name__ == "__main__":
    target = FOLDER / f"v{ledger.VERSION}.ledger"
    if target.exists():
        raise LedgerError(f"{target} exists and stands for files that people have; raise VERSION for another format")
    write(target)
    target.with_suffix(".json").write_text(json.dumps(readable(target), indent=1, ensure_ascii=False) + "\n")
