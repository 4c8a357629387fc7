"""Rows that a run kept: read as they were written, and nothing else is."""

from __future__ import annotations

import base64
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audit import kept
from audit.errors import LedgerError
from audit.kept import Unknown, read_kept
from audit.records import Note
from trainer import calibration, checkpoint
from trainer.loader import Batch

ROWS = np.arange(60, dtype=np.uint16).reshape(6, 10)


def save(path: Path, **changes: Any) -> Path:
    """Six rows of ten ids in two shards, as the stage quantize keeps them, some tensors replaced."""
    starts = np.array([0, 10, 20, 0, 10, 20])
    tensors = {"rows": ROWS.astype(np.int32), "shards": np.array([0, 0, 0, 1, 1, 1], np.int32), "starts": starts}
    named = {name: torch.from_numpy(np.asarray(value)) for name, value in (tensors | changes).items()}
    checkpoint.save(path, named, {})
    return path


def test_what_quantize_keeps_is_a_split(tmp_path: Path) -> None:
    """Rows that the trainer saves are found by shard and start, as its draws name them."""
    path = tmp_path / "calibration.safetensors"
    batches = [
        Batch(0, "self", ROWS[:2], np.zeros(2, np.int32), np.array([0, 10])),
        Batch(1, "self", ROWS[2:3], np.zeros(1, np.int32), np.array([20])),
        Batch(2, "self", ROWS[3:], np.ones(3, np.int32), np.array([0, 10, 20])),
    ]
    calibration.save(path, batches)
    split = read_kept(path, "self")
    for batch in batches:
        assert np.array_equal(split.rows(batch.shards, batch.starts, length=10), batch.rows)
    assert (split.name, split.tokens) == ("self", 60)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": ROWS.astype(np.int32) - 1}, "ids from -1 to 58"),
        ({"rows": ROWS.astype(np.int32) + 65536}, "expected 16 bits"),
        ({"rows": ROWS.astype(np.int32)[0]}, "shape"),
        ({"rows": ROWS.astype(np.int32)[:0]}, "shape"),
        ({"shards": np.zeros(5, np.int32)}, "with a place each"),
        ({"shards": np.array([0, 0, 0, 2**31 - 1, 1, 1], np.int32)}, "it is damaged"),
        ({"shards": np.array([0, 0, 0, -1, 1, 1], np.int32)}, "it is damaged"),
        ({"starts": np.array([0, 10, 21, 0, 10, 20])}, "gaps or overlap"),
        ({"starts": np.array([0, 10, 10, 0, 10, 20])}, "gaps or overlap"),
    ],
)
def test_other_rows_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    """Ids of more than 16 bits, places that leave gaps, tensors that don't fit each other."""
    with pytest.raises(LedgerError, match=says):
        read_kept(save(tmp_path / "kept.safetensors", **changes), "self")


def test_files_that_hold_no_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, no safetensors, another checkpoint, too long."""
    path = tmp_path / "kept.safetensors"
    with pytest.raises(LedgerError, match="can't read the kept rows"):
        read_kept(path, "self")
    for content in (b"", b"\x80\x04pickle", b"\xff" * 8 + b"{}", (2**40).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with pytest.raises(LedgerError, match="holds no kept rows"):
            read_kept(path, "self")
    checkpoint.save(path, {"other": torch.zeros(2)}, {})
    with pytest.raises(LedgerError, match="holds no kept rows"):
        read_kept(path, "self")
    monkeypatch.setattr(kept, "MOST_KEPT_FILE_BYTES", 10)
    with pytest.raises(LedgerError, match="longer than 10 bytes"):
        read_kept(path, "self")


def unknown(ids: np.ndarray, **changes: Any) -> Note:
    """A note `unknown` of these ids, as the recorder writes it."""
    raw = ids.astype("<u2").tobytes()[: 1 << 16]
    packed = base64.b64encode(zlib.compress(raw)).decode()
    facts = {"at": 4, "shape": list(ids.shape), "dtype": "<u2", "rows": packed}
    return Note(5, "unknown", {name: value for name, value in (facts | changes).items() if value is not None}, {})


@given(st.integers(0, 5), st.integers(0, 40))
def test_unknown_ids_come_back(count: int, length: int) -> None:
    """All rows of a small note are there."""
    rows = np.arange(count * length, dtype=np.uint16).reshape(count, length)
    found = Unknown.of(unknown(rows))
    assert found.whole
    assert found.forward == 4
    assert found.rows.ravel().tolist() == rows.ravel().tolist()


def test_of_many_ids_the_first_rows_are_kept() -> None:
    """64 KiB of ids: 16 rows of 2,048, and of one row that is longer its beginning; neither is the whole."""
    rows = np.arange(48 * 2048).reshape(48, 2048).astype(np.uint16)
    found = Unknown.of(unknown(rows))
    assert np.array_equal(found.rows, rows[:16])
    assert not found.whole
    found = Unknown.of(unknown(rows.reshape(1, -1)))
    assert np.array_equal(found.rows, rows.reshape(1, -1)[:, : 1 << 15])
    assert not found.whole


def test_ids_that_were_not_kept_are_no_rows() -> None:
    """A note without ids, of other numbers than 16-bit ids, or of a buffer that was written over meanwhile."""
    for changes in ({"rows": None}, {"dtype": "<f4"}, {"overwritten": True}, {"rows": None, "shape": [2**40, 2**70]}):
        found = Unknown.of(unknown(ROWS, **changes))
        assert (found.rows.size, found.whole) == (0, False)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": None},
        {"shape": []},
        {"shape": [-1, 3]},
        {"shape": [True, 3]},
        {"shape": "6"},
        {"shape": [1] * 9},
        {"shape": [6, 11]},
        {"shape": [6, 9]},
        {"rows": "?"},
        {"rows": 7},
        {"rows": base64.b64encode(b"no zlib").decode()},
        {"rows": base64.b64encode(zlib.compress(bytes(1 << 26))).decode()},
        {"at": 5},
        {"at": -1},
        {"at": None},
        {"at": 4.0},
    ],
)
def test_a_damaged_note_is_refused(changes: dict[str, Any]) -> None:
    """Shapes that don't fit, what can't be unpacked, a forward that is none: refused, in little memory."""
    note = unknown(ROWS, **changes)
    tracemalloc.start()
    with pytest.raises(LedgerError, match="record 5: "):
        Unknown.of(note)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
