"""Rows of unknown origin are found where they stand, also when they were changed a little, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.shards import Shard
from audit.splits import Split
from audit.whereabouts import places


def split_of(tokens: np.ndarray, cuts: list[int]) -> Split:
    """A split of these tokens, cut into shards."""
    parts = np.split(tokens, sorted(cuts))
    return Split("val", tuple(Shard(Path(f"val_{i}.bin"), (), part) for i, part in enumerate(parts)))


STREAM = np.random.default_rng(0).integers(0, 400, 6000).astype(np.uint16)
VAL = split_of(STREAM, [1500, 1500, 4000])


@given(st.integers(8, 300), st.lists(st.integers(0, 5699), min_size=1, max_size=5))
def test_rows_are_found_wherever_they_stand(length: int, starts: list[int]) -> None:
    """Rows of any length from 8 tokens on, also across the ends of shards, are found at their first token."""
    rows = np.stack([STREAM[start : start + length] for start in starts])
    assert places(rows, VAL).tolist() == starts


@given(st.integers(8, 300), st.integers(0, 2**32 - 1))
def test_other_rows_are_found_nowhere(length: int, seed: int) -> None:
    """Random rows, as a compile warm-up draws them, stand nowhere."""
    rows = np.random.default_rng([1, seed]).integers(0, 400, (3, length)).astype(np.uint16)
    assert places(rows, VAL).tolist() == [-1, -1, -1]


def test_a_row_stands_where_most_of_it_does() -> None:
    """A long row that was shifted by a BOS, cut at its end or changed in a token is found; half a row is not."""
    row = STREAM[1000:1300].copy()
    shifted = np.concatenate([[1], row[:-1]]).astype(np.uint16)
    changed = row.copy()
    changed[150] += 1
    padded = np.concatenate([row[:220], np.zeros(80, np.uint16)])
    other = np.concatenate([np.random.default_rng(5).integers(0, 400, 180).astype(np.uint16), row[:120]])
    assert places(np.stack([shifted, changed, padded, other]), VAL).tolist() == [999, 1000, 1000, -1]


def test_a_text_that_stands_twice_is_found_once() -> None:
    """Of equal places the first one is given."""
    twice = split_of(np.concatenate([STREAM[:500], STREAM[:500]]), [])
    assert places(STREAM[None, 100:300], twice).tolist() == [100]
    assert places(STREAM[None, 100:120], twice).tolist() == [100]


@pytest.mark.parametrize("shape", [(0, 64), (2, 0), (2, 7), (1, 6001)])
def test_what_can_not_be_told_is_nowhere(shape: tuple[int, int]) -> None:
    """No rows, rows of fewer than 8 tokens, and rows that are longer than the stream."""
    rows = np.resize(STREAM, shape)
    assert places(rows, VAL).tolist() == [-1] * shape[0]
