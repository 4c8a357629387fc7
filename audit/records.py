"""What a ledger holds: one table for each kind of record, as numpy structured arrays.

A run is a sequence of records, numbered from 0 in each rank's file. A `Block` is a stretch of them, column by column:
every table has a column `at`, the number of the record, which orders records of different kinds. Lists inside a record
(the sequences of a draw, the windows of a score) lie in a table of their own; `offset` and `count` find them.

| kind | one record is | list |
| --- | --- | --- |
| note | a rare fact: a name, JSON facts that repeat, JSON facts that depend on the clock | |
| draw | a batch handed to the program: split, SHA-256 and checksum of its ids | `sequences`: where each row stands |
| forward | token ids that entered the model: checksum of them, gradients recorded or not | |
| step | an optimizer step that the program announced | `used`: ids of its draws |
| update | what a torch optimizer did: fingerprint of its parameters before and after | |
| score | losses of windows: label, counted or not, SHA-256 and checksum of the ids, state of the model | `windows` |
| state | fingerprint of all parameters of the announced model | |
| calibration | draws that went into the quantizer's Hessians | `calibrated`: ids of the draws |

Checksums and fingerprints are 64-bit sums modulo 2^64 (`audit.fingerprint`), digests are SHA-256.

A record that is written is a `Record`, checked the moment it comes; many of them become the bytes of a block, and those
a `Block` (`audit.blocks`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from audit.errors import LedgerError

KINDS = ("note", "draw", "forward", "step", "update", "score", "state", "calibration")
"""The codes of the kinds on disk are their places here."""

SPLIT_BYTES, LABEL_BYTES = 16, 64
DIGEST = ("digest", "u1", (32,))

STORED: Mapping[str, np.dtype[Any]] = {
    "draw": np.dtype(
        [
            ("draw", "<i8"),
            ("split", f"S{SPLIT_BYTES}"),
            ("origin", "u1"),
            ("count", "<u4"),
            ("length", "<u4"),
            ("checksum", "<u8"),
            DIGEST,
        ]
    ),
    "forward": np.dtype([("checksum", "<u8"), ("tokens", "<u4"), ("grad", "u1")]),
    "step": np.dtype([("step", "<i8"), ("lr", "<f8"), ("looped", "u1"), ("collectives", "<u4"), ("count", "<u4")]),
    "update": np.dtype([("optimizer", "<u2"), ("before", "<u8"), ("after", "<u8")]),
    "score": np.dtype(
        [
            ("label", f"S{LABEL_BYTES}"),
            ("counted", "u1"),
            ("collectives", "<u4"),
            ("length", "<u4"),
            ("count", "<u4"),
            ("checksum", "<u8"),
            ("parameters", "<u8"),
            DIGEST,
        ]
    ),
    "state": np.dtype([("parameters", "<u8")]),
    "calibration": np.dtype([("collectives", "<u4"), ("count", "<u4")]),
}
"""The columns of each kind as stored; in memory a table has `at` before them, and `offset` if it has a list.

`length` is the number of inputs of each row (T of rows [n, T+1]); 0 in a draw means that of the `run` note.
"""

LISTS: Mapping[str, tuple[str, np.dtype[Any]]] = {
    "draw": ("sequences", np.dtype([("shard", "<u4"), ("start", "<u4")])),
    "step": ("used", np.dtype([("draw", "<i8")])),
    "score": (
        "windows",
        np.dtype([("begin", "<u4"), ("scored", "<u4"), ("nats", "<f8"), ("octets", "<u4")]),
    ),
    "calibration": ("calibrated", np.dtype([("draw", "<i8")])),
}
"""Kind → the name of its list and the columns of that."""

SHARDS, CONTENT = 0, 1
"""`origin` of a draw: rows stand at (shard, first token) of the split, or are known by their content alone, and then
(shard, start) hold the high and low half of a 64-bit hash of the row."""

FLAGS: Mapping[str, str] = {"draw": "origin", "forward": "grad", "step": "looped", "score": "counted"}
"""Kind → the column that is 0 or 1 and nothing else."""

NAMES: Mapping[str, str] = {"draw": "split", "score": "label"}
"""Kind → the column that is a name: UTF-8, at least one byte, no NUL, filled up with NULs."""


def loaded(kind: str) -> np.dtype[Any]:
    """The columns of a kind in memory."""
    extra = [("offset", "<i8")] if kind in LISTS else []
    return np.dtype([("at", "<i8"), *STORED[kind].descr, *extra])


@dataclass(frozen=True)
class Note:
    """A rare fact. `facts` repeat from run to run, `clock` holds those that do not (host, paths, seconds)."""

    at: int
    name: str
    facts: Mapping[str, Any]
    clock: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Records `first` … `first + len(kinds) - 1` of one rank, by kind. Arrays are read-only."""

    index: int
    first: int
    kinds: np.ndarray
    """uint8 [n]: the kind of every record, in order."""
    clock: np.ndarray
    """int64 [n]: nanoseconds since the ledger began."""
    notes: tuple[Note, ...]
    draws: np.ndarray
    sequences: np.ndarray
    forwards: np.ndarray
    steps: np.ndarray
    used: np.ndarray
    updates: np.ndarray
    scores: np.ndarray
    windows: np.ndarray
    states: np.ndarray
    calibrations: np.ndarray
    calibrated: np.ndarray

    def __len__(self) -> int:
        return len(self.kinds)


TABLES: Mapping[str, str] = {
    "draw": "draws",
    "forward": "forwards",
    "step": "steps",
    "update": "updates",
    "score": "scores",
    "state": "states",
    "calibration": "calibrations",
}
"""Kind → the attribute of `Block` that holds its table."""


# One record, on its way to the disk

MOST_ROWS = 1 << 18
"""Rows in the list of one record: 5 MiB of windows, so that a block stays below `blocks.MOST_PLAIN_BYTES`."""
MOST_NOTE_BYTES = 1 << 18
"""Bytes of one note as JSON."""
MOST_NANOSECONDS = (1 << 63) - 1
DIGEST_BYTES = 32


class Record(NamedTuple):
    """One record: the code of its kind, nanoseconds since the ledger began, and its bytes.

    `row` and `listed` are rows of `STORED` and `LISTS`; `note` the JSON of [name, facts] and of the clock's facts.
    """

    kind: int
    now: int
    row: bytes = b""
    listed: bytes = b""
    note: tuple[bytes, bytes] = (b"", b"")


def _row_format(dtype: np.dtype[Any]) -> struct.Struct:
    codes = {"|u1": "B", "<u2": "H", "<u4": "I", "<u8": "Q", "<i8": "q", "<f8": "d"}
    columns = [dtype[name] for name in dtype.names or ()]
    return struct.Struct("<" + "".join(codes.get(column.str, f"{column.itemsize}s") for column in columns))


_ROWS = {kind: (KINDS.index(kind), _row_format(dtype)) for kind, dtype in STORED.items()}


def record(kind: str, now: int, row: tuple[Any, ...], listed: bytes = b"") -> Record:
    """A record of any kind but a note. Raises LedgerError for a value that its column can't hold."""
    code, packer = _ROWS[kind]
    try:
        return Record(code, now, packer.pack(*row), listed)
    except struct.error as cause:
        raise LedgerError(f"got {row} for a record of kind {kind}: {cause}; it can't be recorded") from None


def note(name: str, facts: Mapping[str, Any], clock: Mapping[str, Any], now: int) -> Record:
    """A note. Raises LedgerError for facts that are not JSON, or too many."""
    try:
        texts = to_json([name, dict(facts)]), to_json(dict(clock))
    except (TypeError, ValueError, RecursionError) as cause:
        raise LedgerError(f"note {name!r} can't be JSON ({cause}); give text, numbers, lists and mappings") from None
    if sum(map(len, texts)) > MOST_NOTE_BYTES:
        size = sum(map(len, texts))
        raise LedgerError(f"note {name!r} has {size} bytes, the limit is {MOST_NOTE_BYTES}; note a digest instead")
    return Record(0, now, note=texts)


def to_json(value: Any) -> bytes:
    """The one JSON text of a value: keys sorted, no spaces, UTF-8. Raises ValueError or TypeError if there is none."""
    raw = _dump(value)
    if from_json(raw) is None:
        raise ValueError("keys that are no text, or appear twice")
    return raw


def from_json(raw: bytes) -> Any:
    """The inverse of `to_json`; None for any other text."""
    try:
        value = json.loads(raw)
        return value if _dump(value) == raw else None
    except (ValueError, RecursionError):
        return None


def _dump(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def name_bytes(value: str, limit: int) -> bytes:
    """A name as it stands in a column. Raises LedgerError if it is empty, too long, or holds a NUL."""
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raw = b""
    if not 0 < len(raw) <= limit or b"\0" in raw:
        raise LedgerError(f"got the name {value[:80]!r}, expected 1 to {limit} bytes of UTF-8 without NUL; name it so")
    return raw


def is_name(raw: bytes) -> bool:
    """Whether the bytes of a column are a name filled up with NULs."""
    plain = raw.rstrip(b"\0")
    try:
        plain.decode()
    except UnicodeDecodeError:
        return False
    return bool(plain) and b"\0" not in plain


def digest_bytes(digest: bytes) -> bytes:
    """A SHA-256 as it stands in a column. Raises LedgerError for another length."""
    if len(digest) != DIGEST_BYTES:
        raise LedgerError(f"got a digest of {len(digest)} bytes, expected the {DIGEST_BYTES} of SHA-256")
    return digest


def list_bytes(kind: str, listed: np.ndarray) -> bytes:
    """The list of a record, [n] rows of `LISTS`. Raises LedgerError for other columns, or too many rows."""
    name, dtype = LISTS[kind]
    if listed.dtype != dtype or listed.ndim != 1 or len(listed) > MOST_ROWS:
        raise LedgerError(
            f"got {listed.dtype} of shape {listed.shape} as {name}, expected {dtype} of shape [n], n ≤ {MOST_ROWS}; "
            "record more in several records"
        )
    return listed.tobytes()


def id_bytes(draws: Sequence[int]) -> bytes:
    """Ids of draws as the list of a step or calibration. Raises LedgerError for too many, or more than 64 bits."""
    try:
        if len(draws) <= MOST_ROWS:
            return struct.pack(f"<{len(draws)}q", *draws)
    except struct.error:
        pass
    raise LedgerError(f"got {len(draws)} draw ids from {draws[0]!r} on, expected at most {MOST_ROWS} of 64 bits")
