"""Splits: found by name, read anywhere as one stream, and nothing foreign let in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import SplitError
from audit.shards import Shard
from audit.splits import Split, open_data
from trainer.shards import write_shard

lengths = st.lists(st.integers(0, 12), min_size=1, max_size=6)


def folder_of(folder: Path, files: Mapping[str, Sequence[int] | None]) -> Path:
    """A folder with these shards; None is a file that is no shard."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tokens in files.items():
        if tokens is None:
            (folder / name).write_bytes(b"something else")
        else:
            write_shard(folder / name, np.array(tokens, dtype=np.uint16))
    return folder


def split_of(sizes: Sequence[int]) -> tuple[Split, np.ndarray]:
    """A split of shards of these sizes in memory, and its stream."""
    stream = np.arange(sum(sizes), dtype=np.uint16) * 7 % 101
    parts = np.split(stream, np.cumsum(sizes)[:-1])
    return Split("val", tuple(Shard(Path(f"val_{i}.bin"), (), part) for i, part in enumerate(parts))), stream


def test_shards_are_found_by_name_and_read_in_order(tmp_path: Path) -> None:
    """Our names and the contest's both work; shards come in the order of their names, whatever the folder's order."""
    for prefix in ("", "fineweb_"):
        files = {f"{prefix}train_000010.bin": [4], f"{prefix}train_000002.bin": [3], f"{prefix}val_000000.bin": [1, 2]}
        data = open_data([folder_of(tmp_path / f"data{prefix}", files)])
        assert data.split("train").slice(0, 9).tolist() == [3, 4]
        assert data.split("val").slice(0, 9).tolist() == [1, 2]
        assert data.tokenizer is None
        assert not data.others


def test_what_is_no_shard_stands_among_the_others(tmp_path: Path) -> None:
    """Sidecars of byte counts, data.json and unknown *.bin files are no part of a split, and none is overlooked."""
    others = ["data.json", "fineweb_val_bytes_000000.bin", "interval_000.bin"]
    shards = {"fineweb_val_000000.bin": [1]}
    folder = folder_of(tmp_path / "d", shards | dict.fromkeys([*others, "notes.txt"]))
    data = open_data([folder])
    assert [path.name for path in data.others] == others
    assert [shard.name for shard in data.split("val").shards] == ["fineweb_val_000000.bin"]


def test_splits_may_lie_in_two_folders(tmp_path: Path) -> None:
    """Training and validation in different folders are one data set; a name in both of them is refused."""
    train = folder_of(tmp_path / "a", {"train_0.bin": [1], "val_1.bin": [1]})
    val = folder_of(tmp_path / "b", {"val_0.bin": [2]})
    assert open_data([train, val]).split("val").slice(0, 2).tolist() == [2, 1]
    folder_of(val, {"val_1.bin": [3]})
    with pytest.raises(SplitError, match=r"val_1\.bin: in two of the folders"):
        open_data([train, val])
    with pytest.raises(SplitError, match="in two of the folders"):
        open_data([train, train])


def test_nothing_found_is_an_error(tmp_path: Path) -> None:
    """No folder, an empty one, one without shards and a missing one are refused; so is a split that is not there."""
    with pytest.raises(SplitError, match="no folder: no shards"):
        open_data([])
    with pytest.raises(SplitError, match=r"no shards train_….bin or val_….bin"):
        open_data([folder_of(tmp_path / "empty", {"mean.bin": None})])
    with pytest.raises(SplitError, match=r"can't read the folder .*none"):
        open_data([tmp_path / "none"])
    data = open_data([folder_of(tmp_path / "d", {"train_0.bin": [1], "val_0.bin": []})])
    with pytest.raises(SplitError, match=r"no tokens of split val, found train \(1 tokens\), val \(0 tokens\)"):
        data.split("val")


def test_the_tokenizer_is_the_only_one_there_is(tmp_path: Path) -> None:
    """tokenizer.model, else the only *.model, else the export's own beside it; two of a kind are refused."""
    export = folder_of(tmp_path / "datasets" / "fineweb10B_sp400", {"fineweb_val_000000.bin": [1]})
    assert open_data([export]).tokenizer is None
    (tmp_path / "tokenizers").mkdir()
    beside = tmp_path / "tokenizers" / "fineweb_400_bpe.model"
    beside.write_bytes(b"x")
    assert open_data([export]).tokenizer == beside
    assert open_data([export], tokenizer=tmp_path / "mine").tokenizer == tmp_path / "mine"
    folder_of(export, {"a.model": None})
    assert open_data([export]).tokenizer == export / "a.model"
    folder_of(export, {"b.model": None})
    with pytest.raises(SplitError, match=r"2 tokenizers, .*a\.model, .*b\.model"):
        open_data([export])
    folder_of(export, {"tokenizer.model": None})
    again = open_data([export], tokenizer=export / ".." / export.name / "tokenizer.model")
    assert [path.name for path in again.others] == ["a.model", "b.model"]
    with pytest.raises(SplitError, match=r"a\.model is the tokenizer's name and another file's"):
        open_data([export], tokenizer=folder_of(tmp_path / "e", {"a.model": None}) / "a.model")
    data = open_data([export])
    assert data.tokenizer == export / "tokenizer.model"
    assert [path.name for path in data.others] == ["a.model", "b.model"]


def test_links_stay_in_their_folder(tmp_path: Path) -> None:
    """A hard link and a link to a file of the same folder are read; one out of the folder, and a loop, are refused."""
    folder = folder_of(tmp_path / "d", {"train_0.bin": [1]})
    outside = folder_of(tmp_path / "e", {"val_0.bin": [2]}) / "val_0.bin"
    os.link(outside, folder / "val_0.bin")
    (folder / "train_1.bin").symlink_to("train_0.bin")
    (tmp_path / "link").symlink_to(folder)
    data = open_data([tmp_path / "link"])
    assert (data.split("train").tokens, data.split("val").tokens) == (2, 1)
    (folder / "val_1.bin").symlink_to(outside)
    with pytest.raises(SplitError, match=r"val_1\.bin is a symbolic link out of its folder"):
        open_data([folder])
    (folder / "val_1.bin").unlink()
    (folder / "val_1.bin").symlink_to("val_1.bin")
    with pytest.raises(SplitError, match=r"val_1\.bin"):
        open_data([folder])


def test_a_name_that_cannot_be_written_down_is_refused(tmp_path: Path) -> None:
    """File names go into manifests and messages: control characters and undecodable bytes are refused."""
    folder = folder_of(tmp_path / "d", {"val_0.bin": [1]})
    for name in (b"val_0\n.bin", b"\xffval_0.bin"):
        odd = folder / os.fsdecode(name)
        odd.write_bytes(b"")
        with pytest.raises(SplitError, match="expected printable UTF-8"):
            open_data([folder])
        odd.unlink()


@given(sizes=lengths, start=st.integers(-5, 90), stop=st.integers(-5, 90))
def test_a_slice_is_that_of_the_whole_stream(sizes: list[int], start: int, stop: int) -> None:
    """Wherever shards end, and where they are empty, a slice is the one of all tokens put together."""
    split, stream = split_of(sizes)
    assert split.tokens == len(stream)
    assert split.slice(start, stop).tolist() == stream[max(start, 0) : max(stop, 0)].tolist()


@given(data=st.data(), sizes=lengths, length=st.integers(1, 20))
def test_rows_are_those_of_the_whole_stream(data: st.DataObject, sizes: list[int], length: int) -> None:
    """Rows by position, and by shard and first token, run over the ends of shards and equal slices of the stream."""
    split, stream = split_of(sizes)
    count = max(len(stream) - length + 1, 0)
    positions = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=9)) if count else [], dtype=np.int64)
    expected = np.array([stream[p : p + length] for p in positions], dtype=np.uint16).reshape(-1, length)
    found = split.at(positions, length=length)
    assert found.dtype == np.uint16
    assert np.array_equal(found, expected)
    places = np.array([split.place(int(p)) for p in positions], dtype=np.int64).reshape(-1, 2)
    assert split.positions(places[:, 0], places[:, 1]).tolist() == positions.tolist()
    assert np.array_equal(split.rows(places[:, 0].astype(np.int32), places[:, 1], length=length), expected)


@pytest.mark.parametrize(("shard", "start"), [(0, 3), (0, -1), (2, 0), (-1, 0), (1, 9), (3, 0), (2**31 - 1, 0)])
def test_a_row_of_other_data_is_refused(shard: int, start: int) -> None:
    """A shard that is not there, a start outside its shard or a row beyond the stream's end is named, not wrapped."""
    split, _ = split_of([3, 5, 0])
    with pytest.raises(SplitError, match=r"split val: row 1 "):
        split.rows(np.array([0, shard]), np.array([0, start]), length=1)


@pytest.mark.parametrize("position", [-1, 5, 8, 2**62])
def test_a_position_outside_the_stream_is_refused(position: int) -> None:
    """Four tokens from position 5 of 8 do not exist, nor do negative positions."""
    split, _ = split_of([3, 5])
    with pytest.raises(SplitError, match=r"split val: row 1 has tokens"):
        split.at(np.array([4, position]), length=4)
    with pytest.raises(SplitError, match="split val: got position"):
        split.place(position if position != 5 else 8)
