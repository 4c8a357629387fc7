"""Shared grams: exactly those that a table of all grams finds, wherever parts, blocks and shards end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import grams
from audit.errors import SplitError
from audit.grams import RUN, Index, search
from audit.shards import Shard
from audit.splits import Split


def split_of(stream: np.ndarray, cuts: Sequence[int] = ()) -> Split:
    parts = np.split(stream.astype(np.uint16), sorted(cuts))
    return Split("train", tuple(Shard(Path(f"train_{i}.bin"), (), part) for i, part in enumerate(parts)))


def slow(tokens: np.ndarray, stream: np.ndarray) -> list[int]:
    """For each token of `tokens` where the gram that starts there stands first in `stream`, -1 if nowhere."""
    first: dict[bytes, int] = {}
    for start in range(len(stream) - RUN + 1):
        first.setdefault(stream[start : start + RUN].tobytes(), start)
    return [first.get(tokens[i : i + RUN].tobytes(), -1) if i + RUN <= len(tokens) else -1 for i in range(len(tokens))]


def streams(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Two streams of few different tokens and with copied pieces, and where the second is cut into shards."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vocabulary = draw(st.sampled_from([1, 2, 3, 60000]))
    one, other = (random.integers(0, vocabulary, draw(st.integers(0, 400))).astype(np.uint16) for _ in "ab")
    for _ in range(draw(st.integers(0, 4))):
        length = draw(st.integers(40, 130))
        if length <= min(len(one), len(other)):
            source, target = (draw(st.integers(0, len(x) - length)) for x in (one, other))
            other[target : target + length] = one[source : source + length]
    return one, other, draw(st.lists(st.integers(0, len(other)), max_size=4))


@given(pair=st.composite(streams)(), block=st.integers(1, 200), part=st.integers(1, 300), threads=st.integers(1, 3))
def test_what_is_found_is_what_a_plain_table_finds(
    pair: tuple[np.ndarray, np.ndarray, list[int]], block: int, part: int, threads: int
) -> None:
    """For any two streams, cut anywhere, with any number of threads: each shared gram and its first place."""
    one, other, cuts = pair
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grams, "BLOCK", block)
        patch.setattr(grams, "PART", part)
        index = Index(one)
        places = index.places(search(index, split_of(other, cuts), threads=threads))
    assert places.tolist() == slow(one, other)


@given(pair=st.composite(streams)(), base=st.sampled_from([1, 3, 2**63 + 1]))
def test_colliding_hashes_change_nothing(pair: tuple[np.ndarray, np.ndarray, list[int]], base: int) -> None:
    """Under a hash that maps many grams to one value the answer is the same: hashes choose, tokens decide."""
    one, other, cuts = pair
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grams, "BASE", base)
        index = Index(one)
        places = index.places(search(index, split_of(other, cuts)))
    assert places.tolist() == slow(one, other)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(0, 5), length=st.integers(1, 120))
def test_grams_do_not_cross_the_ends_of_rows(seed: int, rows: int, length: int) -> None:
    """Rows that stand in the stream one after the other are found row by row; no gram lies in two of them."""
    stream = np.random.default_rng(seed).integers(0, 60000, rows * length).astype(np.uint16)
    index = Index(stream, row=length)
    places = index.places(search(index, split_of(stream))).reshape(rows, length)
    expected = np.arange(rows * length).reshape(rows, length)
    inside = np.arange(length) + RUN <= length
    assert np.array_equal(places, np.where(inside, expected, -1))


@given(pair=st.composite(streams)(), part=st.integers(1, 300))
def test_what_a_thread_has_not_heard_of_changes_nothing(
    pair: tuple[np.ndarray, np.ndarray, list[int]], part: int
) -> None:
    """Threads that know nothing of each other's finds give the same first places as those that know all."""
    one, other, _ = pair
    match = Index.match
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grams, "PART", part)
        patch.setattr(Index, "match", lambda index, tokens, found: match(index, tokens, np.full_like(found, -1)))
        index = Index(one)
        places = index.places(search(index, split_of(other)))
    assert places.tolist() == slow(one, other)


def test_progress_counts_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is reported while it searches adds up to the tokens of the split."""
    monkeypatch.setattr(grams, "PART", 64)
    stream = np.arange(1000, dtype=np.uint16)
    done: list[int] = []
    search(Index(stream[:100]), split_of(stream), progress=done.append)
    assert 1000 - RUN < sum(done) <= 1000


def test_more_tokens_than_positions_are_refused() -> None:
    """An index of more than 2^32 - 1 tokens is refused before anything is allocated."""
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, dtype=np.uint16), shape=(1 << 32,), strides=(0,))
    with pytest.raises(SplitError, match="got 4294967296 tokens"):
        Index(huge)
