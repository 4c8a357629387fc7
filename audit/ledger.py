"""The ledger of a run: append-only blocks of records, each chained to the one before by SHA-256.

    writer = Writer.create(path, rank=0, ranks=1)        writer.draw(…); writer.step(…); writer.seal(…)
    for block in Ledger.open(path).blocks(): …           raises LedgerError at the first record that does not hold
    ending = check(path)                                 head, sealed or not, records, clockless digest

A block (`audit.blocks`, `docs/ledger.md`) is one write, so a process that is killed leaves whole blocks and at most
one torn one; what comes before it can be trusted as far as an unsealed ledger can. The last record of a finished run is
its seal, a note, after which nothing follows. Everything that depends on the clock (times, host, paths) lies in a part
of the block of its own; `Ending.clockless` is the digest of all the rest, equal for equal runs.

Chaining makes edits show where the head was published before; whoever can rewrite the file can also chain it anew
(docs/what-a-ledger-proves.md).
"""

from __future__ import annotations

import os
import re
import struct
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from audit import blocks, records
from audit.blocks import HEADER, NO_SEAL, VERSION, hashed, text
from audit.errors import LedgerError
from audit.records import (
    CONTENT,
    LABEL_BYTES,
    MOST_NANOSECONDS,
    MOST_NOTE_BYTES,
    SHARDS,
    SPLIT_BYTES,
    Block,
    Record,
    digest_bytes,
    id_bytes,
    list_bytes,
    name_bytes,
)

__all__ = ["NO_SEAL", "VERSION", "Ending", "Ledger", "Writer", "check", "parts_of", "seal_of", "text"]

SEAL = "seal"
"""The name of the note that ends a ledger; no other note may have it."""

MOST_RECORDS, MOST_LISTED = 1024, 1 << 16
"""A block is written when it holds so many records, their lists so many rows, or its notes MOST_NOTE_BYTES of JSON."""


def parts_of(folder: Path) -> list[Path]:
    """The ledger files of a run's folder, in the order of ranks. Raises LedgerError if there are none."""
    if folder.is_file():
        raise LedgerError(f"{folder} is a file, expected the folder of all ranks' ledgers; give {folder.parent}")
    found = {path: re.fullmatch(r"rank([0-9]{1,9})\.ledger", path.name) for path in folder.glob("rank*.ledger")}
    ranks = sorted((int(match[1]), path) for path, match in found.items() if match)
    if not ranks:
        inside = sorted({str(path.parent) for path in folder.glob("*/rank*.ledger")})
        remedy = f"give those of {', '.join(inside)}" if inside else f"record a run with `golf-audit run -o {folder} …`"
        raise LedgerError(f"{folder} holds no rank*.ledger; {remedy}")
    return [path for _, path in ranks]


def seal_of(folder: Path) -> bytes:
    """The seal of a stage: one digest over the heads of all its ranks, in order.

    Raises LedgerError if a ledger is not sealed or damaged, and if the ledger of a rank is missing.
    """
    endings = [check(path) for path in parts_of(folder)]
    have = [(ending.rank, ending.ranks) for ending in endings]
    if have != [(rank, len(endings)) for rank in range(len(endings))]:
        ranks = ", ".join(f"{rank} of {ranks}" for rank, ranks in have)
        raise LedgerError(f"{folder} holds the ledgers of ranks {ranks}; every rank's is needed, and no other")
    for ending in endings:
        if ending.seal is None:
            raise LedgerError(f"{ending.path} is not sealed, so its run did not end; run that stage again")
    return hashed("seal", struct.pack("<I", len(endings)), *(ending.head for ending in endings))


# Writing


class Writer:
    """Appends records to a new file. Every method takes what one record holds; `now` is nanoseconds since the start.

    Records may come from several threads. Raises LedgerError for what a record can't hold; then nothing is recorded.
    """

    def __init__(self, descriptor: int, path: Path, head: bytes) -> None:
        self._descriptor, self.path, self._head = descriptor, path, head
        self._index = 0
        self._pending: list[Record] = []
        self._rows = self._note_bytes = 0
        self._writing = threading.RLock()
        self._inside = False
        self._process = os.getpid()
        self._began = time.monotonic_ns()

    @classmethod
    def create(cls, path: Path, *, rank: int, ranks: int, previous: bytes = NO_SEAL) -> Self:
        """Start a ledger; `previous` is `seal_of` the stage before. Raises LedgerError if the file is there."""
        header = blocks.header(rank=rank, ranks=ranks, previous=previous)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            raise LedgerError(f"{path} exists; a ledger is never written over, record into another folder") from None
        except OSError as cause:
            raise LedgerError(f"can't write {path}: {cause.strerror}; record into another folder") from None
        writer = cls(descriptor, path, blocks.parse_header(header, where=str(path)).head)
        writer._append(header)
        return writer

    def now(self) -> int:
        """Nanoseconds since the ledger began."""
        return time.monotonic_ns() - self._began

    def note(
        self, name: str, facts: Mapping[str, Any], clock: Mapping[str, Any] | None = None, *, now: int = 0
    ) -> None:
        """A rare fact; what depends on the clock, the host or a path goes into `clock`."""
        if name == SEAL:
            raise LedgerError(f"a note is named {SEAL!r}, which ends a ledger; use `seal`, or name it otherwise")
        record = records.note(name, facts, clock or {}, now or self.now())
        self._push(record, note_bytes=sum(map(len, record.note)))

    def draw(
        self,
        draw: int,
        split: str,
        sequences: np.ndarray,
        *,
        digest: bytes,
        checksum: int,
        origin: int = SHARDS,
        length: int = 0,
        now: int = 0,
    ) -> None:
        """A batch of rows [n, T+1] handed out; `sequences` [n] has the columns of `LISTS["draw"]`, `length` is T."""
        if origin not in (SHARDS, CONTENT):
            raise LedgerError(f"got origin {origin} of draw {draw}, expected {SHARDS} or {CONTENT}")
        listed, count = list_bytes("draw", sequences), len(sequences)
        row = (draw, name_bytes(split, SPLIT_BYTES), origin, count, length, checksum, digest_bytes(digest))
        self._push(records.record("draw", now or self.now(), row, listed), count)

    def forward(self, *, checksum: int, tokens: int, grad: bool, now: int = 0) -> None:
        """Token ids entered the model."""
        self._push(records.record("forward", now or self.now(), (checksum, tokens, bool(grad))))

    def step(self, step: int, draws: Sequence[int], *, lr: float, looped: bool, collectives: int, now: int = 0) -> None:
        """An optimizer step that uses these draws."""
        row = (step, lr, bool(looped), collectives, len(draws))
        self._push(records.record("step", now or self.now(), row, id_bytes(draws)), len(draws))

    def update(self, *, optimizer: int, before: int, after: int, now: int = 0) -> None:
        """A torch optimizer moved its parameters."""
        self._push(records.record("update", now or self.now(), (optimizer, before, after)))

    def score(
        self,
        label: str,
        windows: np.ndarray,
        *,
        counted: bool,
        collectives: int,
        length: int,
        digest: bytes,
        checksum: int,
        parameters: int,
        now: int = 0,
    ) -> None:
        """Losses of windows, rows [n, L+1]; `windows` [n] has the columns of `LISTS["score"]`, `length` is L."""
        listed, count, name = list_bytes("score", windows), len(windows), name_bytes(label, LABEL_BYTES)
        row = (name, bool(counted), collectives, length, count, checksum, parameters, digest_bytes(digest))
        self._push(records.record("score", now or self.now(), row, listed), count)

    def state(self, *, parameters: int, now: int = 0) -> None:
        """The fingerprint of all parameters."""
        self._push(records.record("state", now or self.now(), (parameters,)))

    def calibration(self, draws: Sequence[int], *, collectives: int, now: int = 0) -> None:
        """These draws went into the quantizer's Hessians."""
        row = (collectives, len(draws))
        self._push(records.record("calibration", now or self.now(), row, id_bytes(draws)), len(draws))

    def _push(self, record: Record, rows: int = 0, note_bytes: int = 0) -> None:
        if self._descriptor < 0:
            raise LedgerError(f"{self.path} is closed; nothing can follow in it")
        if not 0 <= record.now <= MOST_NANOSECONDS:
            raise LedgerError(f"got the time {record.now}, expected nanoseconds since the ledger began")
        self._rows += rows
        self._note_bytes += note_bytes
        # One tuple, so that records of several threads, or of a finalizer that runs just here, can't mix.
        self._pending.append(record)
        if len(self._pending) >= MOST_RECORDS or self._rows >= MOST_LISTED or self._note_bytes >= MOST_NOTE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as one block. Raises LedgerError if it can't be, and in a forked child."""
        self._write(())

    def seal(self, facts: Mapping[str, Any], clock: Mapping[str, Any] | None = None) -> str:
        """Write the last record, flush it to the disk and close. Returns the head, `sha256:…`."""
        self._write((records.note(SEAL, facts, clock or {}, self.now()),))
        self.close()
        return text(self._head)

    def _write(self, last: tuple[Record, ...]) -> None:
        if os.getpid() != self._process:
            raise LedgerError(f"{self.path} belongs to process {self._process}; a forked child can't extend its chain")
        with self._writing:
            # A finalizer that runs inside this very call may record something: that waits for the next block.
            if self._inside or not (self._pending or last):
                return
            self._inside = True
            try:
                self._rows = self._note_bytes = 0
                # The list stays the same object: a record that another thread appends right now is not lost.
                pending = (*self._pending, *last)
                del self._pending[: len(pending) - len(last)]
                content, self._head = blocks.pack(self._head, self._index, len(pending), *blocks.encode(pending))
                self._append(content, durable=bool(last))
                self._index += 1
            finally:
                self._inside = False

    def close(self) -> None:
        """Close the file as it is: unsealed, unless `seal` came before, and without what is pending."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, content: bytes, *, durable: bool = False) -> None:
        """Write bytes at the end. A disk that is full leaves a torn block, after which nothing more may come."""
        if self._descriptor < 0:
            raise LedgerError(f"{self.path} is closed; nothing can follow in it")
        try:
            while content:
                content = content[os.write(self._descriptor, content) :]
            if durable:
                os.fsync(self._descriptor)
        except OSError as cause:
            self.close()
            raise LedgerError(f"can't write {self.path}: {cause.strerror}; free it and run that stage again") from None


# Reading


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What a whole reading of a ledger gives."""

    path: Path
    rank: int
    ranks: int
    previous: bytes
    """`seal_of` the stage before, zeros if there was none."""
    head: bytes
    """The digest of the last block, or of the header if there is none."""
    clockless: bytes
    """Digest of all that does not depend on the clock."""
    records: int
    seal: Mapping[str, Any] | None
    """The facts of the seal, None for a run that did not end."""
    torn_bytes: int
    """Bytes of a block that a killed process left unfinished."""


class Ledger:
    """An opened ledger. `blocks` may be walked any number of times; each walk checks the chain again."""

    def __init__(self, path: Path, header: blocks.Header) -> None:
        self.path, self.header = path, header
        self.rank, self.ranks, self.previous = header.rank, header.ranks, header.previous
        self.ending: Ending | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the header. Raises LedgerError for a file that is missing, no ledger, or of a newer version."""
        with _opened(path) as stream:
            return cls(path, blocks.parse_header(stream.read(HEADER.size), where=str(path)))

    def blocks(self) -> Iterator[Block]:
        """The blocks in order, each checked before it is given. At the end `ending` is set.

        Raises LedgerError with the records that do not hold: a block that does not follow on the one before, one that
        its own digest vouches for and yet can't be read, anything after the seal. A walk that ends otherwise than the
        one before raises as well: what was judged must be what was checked.
        """
        with _opened(self.path) as stream:
            if blocks.parse_header(stream.read(HEADER.size), where=str(self.path)) != self.header:
                raise LedgerError(f"{self.path}: the header changed while it was read; read it again")
            ending = yield from self._walk(stream)
        if self.ending not in (None, ending):
            raise LedgerError(f"{self.path} changed while it was read; read it again when its run has ended")
        self.ending = ending

    def _walk(self, stream: BinaryIO) -> Generator[Block, None, Ending]:
        """The blocks from the first one on; `stream` stands behind the header."""
        head, clockless = self.header.head, hashed("clockless", struct.pack("<II", self.rank, self.ranks))
        first, index = 0, 0
        seal: Mapping[str, Any] | None = None
        while True:
            where = f"{self.path}, block {index}, from record {first} on"
            begin = stream.tell()
            if seal is not None:
                if stream.read(1):
                    raise LedgerError(f"{where}: something follows the seal, record {first - 1}; it was added later")
                break
            if (found := blocks.read_head(stream, head, index, where=where)) is None:
                break
            count = found.lengths.records
            where = f"{self.path}, block {index}, records {first} to {first + count - 1}"
            if (parts := blocks.read_parts(stream, head, found, where=where)) is None:
                break
            block = blocks.decode(*parts, count=count, index=index, first=first, where=where)
            head, clockless = found.digest, hashed("clockless", clockless, parts[0])
            first, index = first + count, index + 1
            seal = _seal(block, where)
            yield block
        return Ending(
            path=self.path,
            rank=self.rank,
            ranks=self.ranks,
            previous=self.previous,
            head=head,
            clockless=clockless,
            records=first,
            seal=seal,
            torn_bytes=stream.seek(0, os.SEEK_END) - begin,
        )


def _seal(block: Block, where: str) -> Mapping[str, Any] | None:
    """The facts of the seal, if this block ends with it. Raises LedgerError if it stands before the end."""
    for note in block.notes:
        if note.name == SEAL:
            if note.at != block.first + len(block) - 1:
                raise LedgerError(
                    f"{where}: records follow the seal, record {note.at}; it was not written by the recorder"
                )
            return note.facts
    return None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes. Raises LedgerError if it can't be read, also later; a pipe or device is never opened."""
    try:
        if path.exists() and not path.is_file():
            raise LedgerError(f"{path} is no file; give the folder that `golf-audit run` wrote")
        with path.open("rb") as stream:
            yield stream
    except OSError as cause:
        raise LedgerError(f"can't read {path}: {cause.strerror}; give the folder that `golf-audit run` wrote") from None


def check(path: Path) -> Ending:
    """Walk a ledger from end to end. Raises LedgerError at the first record that does not hold."""
    ledger = Ledger.open(path)
    for _ in ledger.blocks():
        pass
    assert ledger.ending is not None
    return ledger.ending
