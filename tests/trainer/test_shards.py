"""Token shards: what is written is read, and every kind of damage is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import shards
from trainer.errors import DataError
from trainer.shards import read_shard, write_shard

ids = st.lists(st.integers(0, 2**16 - 1), max_size=300)


@given(tokens=ids)
def test_reading_gives_what_was_written(tmp_path_factory: pytest.TempPathFactory, tokens: list[int]) -> None:
    """Any list of 16-bit ids survives writing and reading, also none at all."""
    path = tmp_path_factory.mktemp("shard") / "a.bin"
    write_shard(path, np.array(tokens, dtype=np.uint16))
    assert read_shard(path).tolist() == tokens
    assert read_shard(path).dtype == np.uint16


def test_the_bytes_are_those_of_the_contest(tmp_path: Path) -> None:
    """256 little-endian int32 words (magic, version, count, zeros), then little-endian uint16 ids."""
    write_shard(tmp_path / "a.bin", np.array([1, 258], dtype=np.uint16))
    head = bytes.fromhex("88d83401 01000000 02000000") + bytes(1024 - 12)
    assert (20240520).to_bytes(4, "little") == head[:4]
    assert (tmp_path / "a.bin").read_bytes() == head + bytes.fromhex("0100 0201")


def test_reading_maps_and_does_not_allow_writing(tmp_path: Path) -> None:
    """Tokens are a read-only map of the file, so that nothing is copied and nothing can change it."""
    write_shard(tmp_path / "a.bin", np.arange(10, dtype=np.uint16))
    tokens = read_shard(tmp_path / "a.bin")
    assert isinstance(tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_words_after_the_count_are_ignored(tmp_path: Path) -> None:
    """A header whose other words aren't zero is read: exports of others may use them."""
    path = tmp_path / "a.bin"
    write_shard(path, np.array([1, 2, 3], dtype=np.uint16))
    data = bytearray(path.read_bytes())
    data[12:1024] = b"\xff" * 1012
    path.write_bytes(data)
    assert read_shard(path).tolist() == [1, 2, 3]


def _damaged(path: Path, at: int, word: int) -> Path:
    write_shard(path, np.array([1, 2, 3], dtype=np.uint16))
    data = bytearray(path.read_bytes())
    data[at : at + 4] = word.to_bytes(4, "little", signed=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("at", "word", "message"),
    [
        (0, 20240519, r"got magic 20240519, expected 20240520"),
        (4, 2, r"got shard version 2, expected 1"),
        (8, 4, r"says 4 tokens, so 1032 bytes, but the file has 1030"),
        (8, 2, r"says 2 tokens, so 1028 bytes, but the file has 1030"),
        (8, -1, r"says -1 tokens"),
        (8, 2**31 - 1, r"says 2147483647 tokens"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, at: int, word: int, message: str) -> None:
    """Magic, version and a count that doesn't fit the file's size are each refused by name."""
    with pytest.raises(DataError, match=message):
        read_shard(_damaged(tmp_path / "a.bin", at, word))


@pytest.mark.parametrize("size", [0, 7, 1023, 1024, 1029])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    """A file that was cut short, in its header or its tokens, is refused."""
    path = tmp_path / "a.bin"
    write_shard(path, np.array([1, 2, 3], dtype=np.uint16))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=rf"{size}"):
        read_shard(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A shard that isn't there is an error with its path, in one line."""
    with pytest.raises(DataError, match=r"gone\.bin: No such file") as caught:
        read_shard(tmp_path / "gone.bin")
    assert "\n" not in str(caught.value)


@given(tokens=ids.filter(bool), vocab_size=st.integers(1, 2**16))
def test_the_first_id_beyond_the_vocabulary_is_named(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[int], vocab_size: int
) -> None:
    """With a vocabulary size, reading fails exactly if an id isn't below it, and names the first one's position."""
    path = tmp_path_factory.mktemp("shard") / "a.bin"
    write_shard(path, np.array(tokens, dtype=np.uint16))
    wrong = [i for i, token in enumerate(tokens) if token >= vocab_size]
    if wrong:
        with pytest.raises(DataError, match=rf"token {wrong[0]} is {tokens[wrong[0]]}, .* {vocab_size};"):
            read_shard(path, vocab_size=vocab_size)
    else:
        assert read_shard(path, vocab_size=vocab_size).tolist() == tokens


def test_ids_are_checked_to_the_last_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard is looked at in parts; an id in the last one is found and its position is that in the shard."""
    monkeypatch.setattr(shards, "CHUNK", 4)
    tokens = np.zeros(11, dtype=np.uint16)
    tokens[10] = 9
    write_shard(tmp_path / "a.bin", tokens)
    with pytest.raises(DataError, match="token 10 is 9"):
        read_shard(tmp_path / "a.bin", vocab_size=9)
    assert [(at, len(part)) for at, part in shards.chunks(tokens)] == [(0, 4), (4, 4), (8, 3)]


@pytest.mark.parametrize("tokens", [np.zeros(3, dtype=np.int64), np.zeros((2, 2), dtype=np.uint16)])
def test_only_a_row_of_uint16_is_written(tmp_path: Path, tokens: np.ndarray) -> None:
    """Other types and shapes are refused, because they would be stored as something else."""
    with pytest.raises(DataError, match="expected uint16"):
        write_shard(tmp_path / "a.bin", tokens)
    assert not list(tmp_path.iterdir())
