"""What a data folder holds: its splits, shard after shard, as streams of tokens that can be read anywhere.

Data flow: folders → `open_data` finds the shards by name and opens them (`audit.shards`) → `Data`: one `Split` for
training and one for validation, the tokenizer, and other files that a manifest has to name. A split is one stream:
its shards in the order of their names, one after the other. `Split.rows` gives rows by shard and first token, as draws
name them; `Split.at` by position in the stream, as scores do; a row may run over the end of a shard into the next.

    data = open_data([Path("runs/data")])
    data.split("val").at(np.array([0, 2048]), length=2049)

A symbolic link inside a folder is followed only to a file of the same folder: a folder is what can be handed over, and
what a link points to elsewhere is not in it. Hard links are plain files. The folder itself may be a link.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from audit.errors import SplitError
from audit.shards import Shard, Tokens, open_shard

TOKENIZER = "tokenizer.model"
SHARD = re.compile(r"(?:.*[-_.])?(train|val)(?:[-_.]?\d+)?\.bin", re.DOTALL)
"""`train.bin`, `train_000000.bin`, `fineweb_val_000003.bin`; not `fineweb_val_bytes_000000.bin`, a sidecar."""
EXPORT = re.compile(r".*_sp(\d+)", re.DOTALL)
"""A folder of the published export, `datasets/fineweb10B_sp8192`, has its tokenizer in `tokenizers/` two levels up."""
NAMES = ("train", "val")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Cores that this process may use: how many threads read files or search tokens."""


@dataclass(frozen=True, eq=False)
class Split:
    """A named stream of tokens in shards."""

    name: str
    shards: tuple[Shard, ...]

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each shard starts in the stream, and where the stream ends: int64 [shards + 1]."""
        return np.cumsum([0, *(len(shard.tokens) for shard in self.shards)], dtype=np.int64)

    @property
    def tokens(self) -> int:
        """Tokens of all shards together."""
        return int(self.offsets[-1])

    def slice(self, start: int, stop: int) -> Tokens:
        """Tokens start … stop - 1 of the stream, uint16; a view of the map where they lie in one shard.

        Like a slice of a list it ends where the stream ends.
        """
        start, stop = max(start, 0), min(stop, self.tokens)
        if stop <= start:
            return np.zeros(0, dtype=np.uint16)
        first, last = (int(i) for i in np.searchsorted(self.offsets, [start, stop - 1], side="right") - 1)
        parts = [
            self.shards[i].tokens[max(start - int(self.offsets[i]), 0) : stop - int(self.offsets[i])]
            for i in range(first, last + 1)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def place(self, position: int) -> tuple[int, int]:
        """(index of the shard, token in it) of a position of the stream. Raises SplitError outside of it."""
        if not 0 <= position < self.tokens:
            raise SplitError(f"split {self.name}: got position {position}, it has {self.tokens} tokens; {_ELSEWHERE}")
        shard = int(np.searchsorted(self.offsets, position, side="right")) - 1
        return shard, position - int(self.offsets[shard])

    def positions(self, shards: npt.NDArray[np.integer], starts: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Positions in the stream, int64 [n], of tokens `starts` [n] of `shards` [n]. Raises SplitError outside it."""
        index, start = np.asarray(shards, dtype=np.int64), np.asarray(starts, dtype=np.int64)
        known = (index >= 0) & (index < len(self.shards))
        lengths = np.diff(self.offsets)[np.where(known, index, 0)] if self.shards else np.zeros_like(index)
        wrong = np.flatnonzero(~known | (start < 0) | (start >= lengths))
        if len(wrong):
            i = int(wrong[0])
            raise SplitError(
                f"split {self.name}: row {i} starts at token {start[i]} of shard {index[i]}, which is not in its "
                f"{len(self.shards)} shards of {self.tokens} tokens; {_ELSEWHERE}"
            )
        positions: npt.NDArray[np.int64] = self.offsets[index] + start
        return positions

    def rows(self, shards: npt.NDArray[np.integer], starts: npt.NDArray[np.integer], *, length: int) -> Tokens:
        """Rows of `length` tokens, uint16 [n, length], from token `starts` [n] of `shards` [n] on."""
        return self.at(self.positions(shards, starts), length=length)

    def at(self, positions: npt.NDArray[np.integer], *, length: int) -> Tokens:
        """Rows of `length` tokens, uint16 [n, length], from these positions [n] of the stream on.

        Raises SplitError if a row isn't wholly in the stream.
        """
        begin = np.asarray(positions, dtype=np.int64)
        wrong = np.flatnonzero((begin < 0) | (begin + length > self.tokens))
        if len(wrong):
            i = int(wrong[0])
            raise SplitError(
                f"split {self.name}: row {i} has tokens {begin[i]} to {begin[i] + length - 1}, it has {self.tokens}; "
                f"{_ELSEWHERE}"
            )
        found = np.empty((len(begin), length), dtype=np.uint16)
        index = np.searchsorted(self.offsets, begin, side="right") - 1
        inside = begin + length <= self.offsets[index + 1] if len(begin) else np.zeros(0, dtype=np.bool_)
        for shard in np.unique(index[inside]):
            chosen = np.flatnonzero(inside & (index == shard))
            windows = np.lib.stride_tricks.sliding_window_view(self.shards[shard].tokens, length)
            found[chosen] = windows[begin[chosen] - self.offsets[shard]]
        for row in np.flatnonzero(~inside):
            found[row] = self.slice(int(begin[row]), int(begin[row]) + length)
        return found


_ELSEWHERE = "the rows are of other data"


@dataclass(frozen=True, eq=False, kw_only=True)
class Data:
    """The opened folders: splits by name, the tokenizer if there is one, and what else a manifest names."""

    splits: dict[str, Split]
    tokenizer: Path | None
    others: tuple[Path, ...]

    def split(self, name: str) -> Split:
        """A split that has tokens. Raises SplitError if there is none of this name, or it is empty."""
        if name not in self.splits or not self.splits[name].tokens:
            have = ", ".join(f"{split.name} ({split.tokens} tokens)" for split in self.splits.values())
            raise SplitError(f"no tokens of split {name}, found {have}; name the folder with {name}_000000.bin too")
        return self.splits[name]


def open_data(folders: Sequence[Path], *, tokenizer: Path | None = None) -> Data:
    """Open all shards of one data set, which may lie in several folders. Raises SplitError, also if there are none.

    The tokenizer is `tokenizer` if given, else tokenizer.model or the only *.model of the folders, else the one that
    the published export keeps beside a folder of this name.
    """
    paths = data_files(folders)
    splits = {name: [path for path in paths if _split_of(path.name) == name] for name in NAMES}
    if not any(splits.values()):
        where = ", ".join(str(folder) for folder in folders) or "no folder"
        raise SplitError(f"{where}: no shards train_….bin or val_….bin; name the folder that holds them")
    model = tokenizer or _tokenizer(folders, [path for path in paths if path.suffix == ".model"])
    shards = {*splits["train"], *splits["val"]}
    model_file = os.path.realpath(model) if model else None
    others = tuple(path for path in paths if path not in shards and os.path.realpath(path) != model_file)
    if model and model.name in {path.name for path in others}:
        raise SplitError(f"{model.name} is the tokenizer's name and another file's in the folder; rename one of them")
    return Data(
        splits={
            name: Split(name, tuple(open_shard(path) for path in found)) for name, found in splits.items() if found
        },
        tokenizer=model,
        others=others,
    )


def data_files(folders: Sequence[Path]) -> list[Path]:
    """The files of the folders that belong to a data set, by name. Raises SplitError if two have one name."""
    paths = sorted((path for folder in folders for path in _files(folder)), key=lambda path: path.name)
    repeated = sorted({one.name for one, next_ in itertools.pairwise(paths) if one.name == next_.name})
    if repeated:
        raise SplitError(f"{', '.join(repeated)}: in two of the folders, expected different names; give each file once")
    return paths


def _split_of(name: str) -> str | None:
    found = SHARD.fullmatch(name)
    return found[1] if found else None


def _files(folder: Path) -> list[Path]:
    """The *.bin and *.model files of a folder and its data.json. Raises SplitError."""
    try:
        root, names = folder.resolve(strict=True), [entry.name for entry in folder.iterdir()]
    except OSError as cause:
        raise SplitError(f"can't read the folder {folder}: {cause.strerror}; name a data folder") from None
    found = []
    for name in names:
        path = folder / name
        if path.suffix not in (".bin", ".model") and name != "data.json":
            continue
        if path.is_symlink() and Path(os.path.realpath(path)).parent != root:
            raise SplitError(f"{path} is a symbolic link out of its folder; copy the file there, or hard-link it")
        if not name.isprintable() or name != name.encode("utf-8", "replace").decode():
            raise SplitError(f"{folder}: a file is called {name!r}, expected printable UTF-8; rename it")
        found.append(path)
    return found


def _tokenizer(folders: Sequence[Path], models: Sequence[Path]) -> Path | None:
    named = [path for path in models if path.name == TOKENIZER]
    beside = [
        folder.resolve().parent.parent / "tokenizers" / f"fineweb_{match[1]}_bpe.model"
        for folder in folders
        if (match := EXPORT.fullmatch(folder.resolve().name))
    ]
    chosen = named or models or [path for path in beside if path.is_file()]
    if len(chosen) > 1:
        names = ", ".join(str(path) for path in chosen)
        raise SplitError(f"got {len(chosen)} tokenizers, {names}, expected one; say which one made the shards")
    return chosen[0] if chosen else None
