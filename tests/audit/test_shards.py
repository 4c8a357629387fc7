"""Shards read without the trainer: the same tokens as it reads, and every kind of damage named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import SplitError
from audit.shards import open_shard
from trainer.errors import DataError
from trainer.shards import read_shard, write_shard

ids = st.lists(st.integers(0, 2**16 - 1), max_size=300)


@given(tokens=ids)
def test_what_the_trainer_writes_is_read(tmp_path_factory: pytest.TempPathFactory, tokens: list[int]) -> None:
    """Any list of 16-bit ids that the trainer wrote is read back, with header and size, also none at all."""
    path = tmp_path_factory.mktemp("shard") / "a.bin"
    write_shard(path, np.array(tokens, dtype=np.uint16))
    shard = open_shard(path)
    assert shard.tokens.tolist() == tokens == read_shard(path).tolist()
    assert shard.tokens.dtype == np.uint16
    assert (shard.name, shard.size) == ("a.bin", path.stat().st_size)
    assert shard.header == (20240520, 1, len(tokens))[: 3 if tokens else 2]


def test_tokens_are_a_map_that_cannot_be_written(tmp_path: Path) -> None:
    """Tokens are read from the file when they are used, and nothing can be written to it through them."""
    write_shard(tmp_path / "a.bin", np.arange(10, dtype=np.uint16))
    tokens = open_shard(tmp_path / "a.bin").tokens
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1
    with (tmp_path / "a.bin").open("r+b") as stream:
        stream.seek(1024)
        stream.write(b"\xff\xff")
    assert tokens[0] == 65535


def test_other_words_of_the_header_are_kept(tmp_path: Path) -> None:
    """Header words beyond the count are read and shown: exports of others may use them, or hide something there."""
    path = tmp_path / "a.bin"
    write_shard(path, np.array([1, 2, 3], dtype=np.uint16))
    content = bytearray(path.read_bytes())
    content[16:20] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert open_shard(path).header == (20240520, 1, 3, 0, 2**32 - 1)


@pytest.mark.parametrize(
    ("at", "word", "message"),
    [
        (0, 20240519, r"got magic 20240519, expected 20240520"),
        (4, 2, r"got shard version 2, expected 1"),
        (8, 4, r"says 4 tokens, so 1032 bytes, but the file has 1030"),
        (8, 2, r"says 2 tokens, so 1028 bytes, but the file has 1030"),
        (8, -1, r"says 4294967295 tokens"),
        (8, 2**31 - 1, r"says 2147483647 tokens"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, at: int, word: int, message: str) -> None:
    """Magic, version and a count that doesn't fit the file's size are each refused by name, before anything is read."""
    path = tmp_path / "a.bin"
    write_shard(path, np.array([1, 2, 3], dtype=np.uint16))
    content = bytearray(path.read_bytes())
    content[at : at + 4] = (word % 2**32).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(SplitError, match=message) as caught:
        open_shard(path)
    assert "a.bin" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(position=st.integers(0, 1029), bit=st.integers(0, 7), cut=st.integers(0, 1030))
def test_both_readers_refuse_the_same_files(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int, cut: int
) -> None:
    """A shard with any flipped bit and any cut is read by both readers to the same tokens, or refused by both."""
    path = tmp_path_factory.mktemp("shard") / "a.bin"
    write_shard(path, np.array([1, 2, 3], dtype=np.uint16))
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    for damaged in (content, content[:cut]):
        path.write_bytes(damaged)
        try:
            expected = read_shard(path).tolist()
        except DataError:
            with pytest.raises(SplitError):
                open_shard(path)
        else:
            assert open_shard(path).tokens.tolist() == expected


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path) -> None:
    """A pipe would be waited on for ever, a folder can't be read: both are refused, and so is a missing file."""
    os.mkfifo(tmp_path / "pipe.bin")
    (tmp_path / "folder.bin").mkdir()
    for name, message in (("pipe", "no plain file"), ("folder", "no plain file"), ("none", "No such file")):
        with pytest.raises(SplitError, match=rf"{name}\.bin.*{message}"):
            open_shard(tmp_path / f"{name}.bin")
