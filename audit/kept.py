"""Rows of tokens that a run kept, because no shard holds them or nobody announced them.

    read_kept(path, "self")      the text that the model wrote for its calibration, as a split that can be read again
    Unknown.of(note)             the ids of a forward that matched no draw, as far as the ledger has them

Both come from whoever ran the program, so both are bounded, and nothing in them is run.
"""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from audit.errors import LedgerError
from audit.records import Note
from audit.shards import Shard, Tokens
from audit.splits import Split

MOST_KEPT_FILE_BYTES = 1 << 30
"""The real shape keeps 512 rows of 2,049 ids: 4 MiB."""
MOST_UNKNOWN_BYTES = 1 << 16
"""Bytes of ids that a note `unknown` holds at most."""


def read_kept(path: Path, name: str) -> Split:
    """The rows of a safetensors file (`rows` [n, T+1], `shards` [n], `starts` [n]) as a split of that name.

    Rows of one shard must follow each other without a gap, so that shard and start find them as in any other split.
    Raises LedgerError for a file that is missing, too large, damaged, or holds other rows.
    """
    remedy = "run the stage quantize again"
    try:
        if path.stat().st_size > MOST_KEPT_FILE_BYTES:
            raise LedgerError(f"{path} is longer than {MOST_KEPT_FILE_BYTES} bytes, expected a few rows; {remedy}")
        tensors = _load(path.read_bytes())
        rows, shards, starts = (tensors[column].astype(np.int64) for column in ("rows", "shards", "starts"))
    except OSError as cause:
        raise LedgerError(f"can't read the kept rows {path}: {cause.strerror}; {remedy}") from None
    except (KeyError, ValueError) as cause:
        raise LedgerError(f"{path} holds no kept rows ({' '.join(str(cause).split())}); {remedy}") from None
    if rows.ndim != 2 or not rows.size or shards.shape != rows.shape[:1] or starts.shape != rows.shape[:1]:
        raise LedgerError(f"{path}: got rows of shape {rows.shape}, expected [n, T+1] with a place each; {remedy}")
    if rows.min() < 0 or rows.max() >= 1 << 16:
        raise LedgerError(f"{path}: got ids from {rows.min()} to {rows.max()}, expected 16 bits; {remedy}")
    return Split(
        name, tuple(_shard(path, rows[shards == i], starts[shards == i]) for i in range(_shards(shards, path)))
    )


def _load(data: bytes) -> dict[str, np.ndarray]:
    import safetensors.numpy
    from safetensors import SafetensorError

    try:
        return dict(safetensors.numpy.load(data))
    except SafetensorError as cause:
        raise ValueError(str(cause)) from None


def _shards(shards: np.ndarray, path: Path) -> int:
    count = int(shards.max()) + 1
    if shards.min() < 0 or count > len(shards):
        raise LedgerError(f"{path}: got shards {shards.min()} to {count - 1} for {len(shards)} rows; it is damaged")
    return count


def _shard(path: Path, rows: np.ndarray, starts: np.ndarray) -> Shard:
    """The rows of one shard, in order, as a stream. Raises LedgerError for a gap."""
    order = np.argsort(starts, kind="stable")
    if (starts[order] != rows.shape[1] * np.arange(len(rows))).any():
        raise LedgerError(
            f"{path}: rows of a shard leave gaps or overlap, expected one behind the other; it is damaged"
        )
    return Shard(path, (), rows[order].astype(np.uint16).reshape(-1))


@dataclass(frozen=True, eq=False)
class Unknown:
    """What a note `unknown` has of the ids that entered the model."""

    forward: int
    """Number of the forward's record."""
    rows: Tokens
    """uint16 [n, L]; empty where ids were not kept, or are no 16-bit ids."""
    whole: bool
    """Whether these are all the rows, to their last token."""

    @classmethod
    def of(cls, note: Note) -> Self:
        """Raises LedgerError for a note that is damaged."""
        at, facts = note.facts.get("at"), note.facts
        if type(at) is not int or not 0 <= at < note.at:
            raise LedgerError(f"record {note.at}: unknown ids of record {at!r:.40}, expected one before it; {_DAMAGED}")
        count, length = _shape(note)
        if facts.get("dtype", "<u2") != "<u2" or "rows" not in facts or facts.get("overwritten"):
            return cls(at, np.zeros((0, 0), dtype=np.uint16), False)
        raw = _unpacked(note, facts["rows"], min(2 * count * length, MOST_UNKNOWN_BYTES))
        ids = np.frombuffer(raw, dtype="<u2").astype(np.uint16)
        width = min(length, len(ids)) or 1  # of a row that is longer than what is kept, so much
        rows = ids[: len(ids) // width * width].reshape(-1, width)
        return cls(at, rows, rows.size == count * length)


_DAMAGED = "it was not written by the recorder"


def _unpacked(note: Note, packed: Any, size: int) -> bytes:
    """Exactly `size` bytes, whatever was packed."""
    try:
        raw = zlib.decompressobj().decompress(base64.b64decode(packed, validate=True), size + 1)
    except (ValueError, TypeError, zlib.error) as cause:
        raise LedgerError(f"record {note.at}: its ids can't be unpacked ({cause}); {_DAMAGED}") from None
    if len(raw) != size:
        raise LedgerError(f"record {note.at}: got {len(raw)} bytes of ids, expected {size}; {_DAMAGED}")
    return raw


def _shape(note: Note) -> tuple[int, int]:
    """Rows, and ids in each, of a note `unknown`: all dimensions but the last one are rows."""
    shape: Any = note.facts.get("shape")
    if not isinstance(shape, list) or not 1 <= len(shape) <= 8 or not all(type(n) is int and n >= 0 for n in shape):
        raise LedgerError(f"record {note.at}: got the shape {shape!r:.80} of unknown ids, expected [n, T]; {_DAMAGED}")
    return math.prod(shape[:-1]), shape[-1]
